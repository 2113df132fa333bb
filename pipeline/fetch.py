"""The weights of a feature extractor, fetched once into the cache of torch.hub (TORCH_HOME).

    python -m pipeline.fetch config=... out=results/extractors/<extractor>.json

Of several processes one downloads and the others wait for it. The steps that need the weights only
look for them. The record that is written names the extractor and the sha256 of its weights.
"""

from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

from pipeline.base import locks
from pipeline.base.errors import UserError, run_main
from pipeline.base.json_objects import JsonObject
from pipeline.config.load import load_step
from pipeline.config.paths import extractor_file, out_file
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.weights_sources import Published, WeightsSources, read_weights
from pipeline.steps import STEPS

WORDS = STEPS["fetch"].words


class ExtractorRecord(JsonObject):
    """results/extractors/<extractor>.json: the weights on which references and scores depend."""

    # Which weights
    extractor: str
    sha256: str  # of the weights file
    known: bool  # whether it is a published one


def fetch(sources: WeightsSources) -> None:
    """Download the published weights of an extractor unless they are in the cache or a package.

    Raises UserError if that cannot be done.
    """
    # Needed at all
    published = sources.published
    if published is None or sources.present():
        return

    # One process downloads
    try:
        with ExitStack() as stack:
            hold(stack, published.path.parent / f".{sources.name}")
            if not sources.present():  # nobody was quicker
                download(published)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"the weights of {sources.name} cannot be downloaded ({error}): {sources.remedies}"
        ) from error


def hold(stack: ExitStack, folder: Path) -> None:
    """Wait for the lock of `folder` and hold it until `stack` ends."""
    while True:
        locks.wait_until_free(folder)
        try:
            stack.enter_context(locks.locked(folder))
        except UserError:  # another process that waited was quicker
            continue
        return


def download(source: Published) -> None:
    """Download a published file to its place in the cache: checked, then renamed into place."""
    print(f"downloading {source.url} to {source.path}", flush=True)
    import torch  # slow, and mostly the file is there

    torch.hub.download_url_to_file(
        source.url, str(source.path), hash_prefix=source.sha256, progress=False
    )


def main(argv: list[str]) -> None:
    """Fetch the weights of evaluate.extractor, check them and record which they are."""
    config, path_words = load_step(argv, WORDS)
    sources, weights = KINDS[config.evaluate.extractor], config.evaluate.weights
    out = out_file(Path(path_words.get("out", extractor_file(config))))
    # Download
    if weights is None:
        fetch(sources)
    # Record
    file = sources.find(weights)
    _, sha256 = read_weights(file)
    ExtractorRecord(extractor=sources.name, sha256=sha256, known=sources.knows(sha256)).write(out)
    print(f"weights of {sources.name}: {file.path} (sha256 {sha256[:8]}…)", flush=True)


if __name__ == "__main__":
    run_main(main)

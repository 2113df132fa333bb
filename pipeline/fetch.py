"""The weights of a feature extractor, fetched once into the cache of torch.hub (TORCH_HOME).

    python -m pipeline.fetch config=... out=results/extractors/<extractor>.json

Of several processes one downloads and the others wait for it. The steps that need the weights only
look for them. The record that is written names the extractor and the sha256 of its weights.
"""

from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

import torch

from pipeline.base import locks
from pipeline.base.errors import UserError, run_main
from pipeline.base.files import write_json
from pipeline.config.load import load_step
from pipeline.config.paths import extractor_file, out_file
from pipeline.scoring.weights import (
    PUBLISHED,
    cached_file,
    find_weights,
    is_published,
    present,
    read_weights,
    remedies,
)

WORDS = ("out",)


def fetch(name: str) -> None:
    """Download the weights of extractor `name` unless they are in the cache or a package.

    Raises UserError where that cannot be done.
    """
    if present(name) or name not in PUBLISHED:
        return
    try:
        with ExitStack() as stack:
            hold(stack, cached_file(name).parent / f".{name}")
            if not present(name):  # nobody was quicker
                download(name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"the weights of {name} cannot be downloaded ({error}): {remedies(name)}"
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


def download(name: str) -> None:
    """Download a published file to its place in the cache: checked, then renamed into place."""
    source, target = PUBLISHED[name], cached_file(name)
    print(f"downloading {source.url} to {target}", flush=True)
    torch.hub.download_url_to_file(
        source.url, str(target), hash_prefix=source.sha256, progress=False
    )


def main(argv: list[str]) -> None:
    """Fetch the weights of evaluate.extractor, check them and record which they are."""
    config, own = load_step(argv, WORDS)
    name, given = config.evaluate.extractor, config.evaluate.weights
    out = out_file(Path(own.get("out", extractor_file(config))))
    if given is None:
        fetch(name)
    path, expected = find_weights(name, given)
    _, sha256 = read_weights(path, expected)
    record = {"extractor": name, "sha256": sha256, "known": is_published(name, sha256)}
    write_json(out, record)
    print(f"weights of {name}: {path} (sha256 {sha256[:8]}…)", flush=True)


if __name__ == "__main__":
    run_main(main)

"""The image sets in a folder, how each is packaged, and the one that data.source=auto means."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.config.load import overlaid
from pipeline.config.schema import Config
from pipeline.images.sources.packagings import PACKAGINGS, Location


def image_sets(root: Path, resolution: int | str) -> list[Location]:
    """Everything in `root` that a pattern names; `resolution` tells batches of two sizes apart."""
    return [
        Location(packaging, root, paths, resolution)
        for packaging in PACKAGINGS
        for pattern in packaging.patterns
        if (paths := sorted(root.glob(pattern.format(resolution=resolution))))
    ]


def choose(root: Path, source: str, layout: str, resolution: int | str) -> Location:
    """The one packaging of `source` in `root`; `layout` names it, or is `auto`.

    Raises UserError if there is none or more than one, listing those that are there.
    """
    # exactly one that fits
    everything = image_sets(root, resolution)
    fitting = [f for f in everything if f.source == source and layout in ("auto", f.layout)]
    if len(fitting) == 1:
        check_complete(fitting[0].paths)
        return fitting[0]
    # several
    if fitting:
        raise UserError(
            f"data.source={source} is in {root} more than once: {'; '.join(map(str, fitting))}: "
            "name one with data.layout, or give data.dir=FOLDER with only one"
        )
    # none
    wanted = [p for p in PACKAGINGS if p.source == source and layout in ("auto", p.layout)]
    patterns = ", ".join(pattern for packaging in wanted for pattern in packaging.patterns)
    looked = patterns.format(resolution=resolution)
    listed = f"; there is {'; '.join(map(str, everything))}" if everything else ""
    raise UserError(
        f"data.source={source}{'' if layout == 'auto' else f' data.layout={layout}'} is not in "
        f"{root} (looked for {looked}{listed}): point IMAGENET_DIR or data.dir at the folder that "
        "holds it"
    )


def check_complete(paths: list[Path]) -> None:
    """Raise UserError if shards named NAME-00000-of-00294.* are not all there."""
    numbered = [re.search(r"-(\d+)-of-(\d+)\.", path.name) for path in paths]
    for total in {int(match[2]) for match in numbered if match}:
        present = {int(match[1]) for match in numbered if match and int(match[2]) == total}
        missing = sorted(set(range(total)) - present)
        if missing:
            raise UserError(
                f"{len(missing)} of {total} shards are missing in {paths[0].parent} "
                f"(first: number {missing[0]:05d}): get them too"
            )


def resolve_image_set(config: Config, environment: Mapping[str, str] = os.environ) -> Config:
    """`config` with the image set that data.source=auto means; unchanged if it names one.

    That is the set of the pack at data.path, else the only one in the image folder, else the only
    pack's. Every step calls this once, after its words are parsed. Raises UserError if several
    image sets lie in the folder.
    """
    data = config.data
    if data.source != "auto":
        return config
    manifest = Path(data.path) / "manifest.json" if data.path else None
    if manifest and manifest.is_file():
        return overlaid(config, {"data": {"source": read_json(manifest).get("source")}})
    images = data.dir or environment.get("IMAGENET_DIR")
    packs = data.pack_dir or environment.get("IMAGENET_DIR")
    name = f"*_{data.resolution}/{config.data.recipe}"
    source = detect(Path(images) if images else None, Path(packs) if packs else None, name)
    return overlaid(config, {"data": {"source": source}})


def detect(root: Path | None, packs: Path | None, pack: str) -> str:
    """The image set that data.source=auto means: the only one in `root`, else the only pack's.

    `pack` is `*_<res>/<recipe>`, the place of the packs below `packs`. Without any: train.
    Raises UserError if several image sets lie in `root`, listing them.
    """
    resolution = pack.partition("/")[0].removeprefix("*_")
    sets = image_sets(root, resolution) if root and root.is_dir() else []
    sources = {image_set.source for image_set in sets}
    if len(sources) > 1:
        raise UserError(
            f"{root} holds several image sets: {'; '.join(map(str, sets))}: "
            "name one with data.source"
        )
    if not sources and packs:
        made = packs.glob(f"{pack}/manifest.json")
        names = {path.parent.parent.name.rpartition("_")[0] for path in made}
        sources = names & {packaging.source for packaging in PACKAGINGS}
    return sources.pop() if len(sources) == 1 else "train"

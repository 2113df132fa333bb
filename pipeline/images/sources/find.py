"""The image sets in a folder, how each is packaged, and the one that data.source=auto means."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.config.load import overlaid
from pipeline.config.schema import Config
from pipeline.images.sources import contents
from pipeline.images.sources.packagings import PACKAGINGS, Location

# Numbers in names
OF_MANY = re.compile(r"(?P<set>.*)-(?P<number>\d+)-of-(?P<total>\d+)[.-]")
COUNTED = re.compile(r"(?P<set>.*?)(?P<number>\d+)\.(tar|tar\.gz|parquet)")  # without a total


def image_sets(root: Path, resolution: int | str, layout: str = "auto") -> list[Location]:
    """Everything in `root` that a pattern names; `resolution` tells sets of two sizes apart.

    If a name fits several layouts, the contents decide, or `layout` if they never give it.
    """
    sets = []
    for packaging in PACKAGINGS:
        for pattern in packaging.patterns:
            paths = sorted(root.glob(pattern.format(resolution=resolution)))
            groups = [[path] for path in paths] if packaging.by_contents else [paths]
            sets += [Location(packaging, root, group, resolution) for group in groups if group]
    layouts = {s.paths[0]: contents.layout_of(s.paths[0]) for s in sets if s.packaging.by_contents}
    fitting = [s for s in sets if layouts.get(s.paths[0], s.layout) == s.layout]
    if layout == "auto" or any(s.layout == layout for s in fitting):
        return fitting
    return [s for s in sets if s.layout == layout or s.paths[0] not in layouts]


def choose(root: Path, source: str, layout: str, resolution: int | str) -> Location:
    """The one packaging of `source` in `root`; `layout` names it, or is `auto`.

    Raises UserError if there is none or more than one, listing those that are there.
    """
    # exactly one that fits
    everything = image_sets(root, resolution, layout)
    fitting = [f for f in everything if f.source == source and layout in ("auto", f.layout)]
    if len(fitting) == 1:
        check_complete(fitting[0].paths, fitting[0].packaging.num_files)
        return fitting[0]
    # several
    if fitting:
        raise UserError(
            f"data.source={source} is in {root} more than once: {'; '.join(map(str, fitting))}: "
            "name one with data.layout, or give data.dir=FOLDER with only one"
        )
    # none
    packagings = [p for p in PACKAGINGS if p.source == source and layout in ("auto", p.layout)]
    patterns = dict.fromkeys(pattern for p in packagings for pattern in p.patterns)
    looked = ", ".join(patterns).format(resolution=resolution)
    listed = f"; there is {'; '.join(map(str, everything))}" if everything else ""
    raise UserError(
        f"data.source={source}{'' if layout == 'auto' else f' data.layout={layout}'} is not in "
        f"{root} (looked for {looked}{listed}): point IMAGENET_DIR or data.dir at the folder that "
        "holds it"
    )


def check_complete(paths: list[Path], num_files: int | None = None) -> None:
    """Raise UserError if numbered shards are not all there, or one is there twice.

    Names such as train-00000-of-00294-0f3a.parquet tell how many there are; those such as
    imagenet1k-train-0000.tar, if there are several, count from 0 or 1 without a gap. `num_files`:
    of shards that count from 0, if there are always as many.
    """
    # Numbers, and how many there should be
    of_many = [match for path in paths if (match := OF_MANY.match(path.name))]
    counted = [match for path in paths if (match := COUNTED.fullmatch(path.name))]
    totals = {num_files} if num_files else {int(match["total"]) for match in of_many}
    if len(totals) > 1 or 0 < len(of_many) < len(paths):
        raise UserError(
            f"{paths[0].parent} holds shards of several sets ({paths[0].name} … {paths[-1].name}): "
            "move all but those of one away"
        )
    numbers = sorted(int(match["number"]) for match in of_many or counted)
    if len({match["set"] for match in of_many or counted}) != 1:
        return  # not a series
    if len(counted) == 1 == len(paths) and not num_files:
        return
    first, end = (0, totals.pop()) if totals else (min(numbers[0], 1), numbers[-1] + 1)
    # All of them, once
    missing = sorted(set(range(first, end)) - set(numbers))
    if missing:
        raise UserError(
            f"{len(missing)} of {end - first} shards are missing in {paths[0].parent} "
            f"(first: number {missing[0]:05d}): get them too"
        )
    if twice := [number for number, num in Counter(numbers).items() if num > 1]:
        raise UserError(
            f"{paths[0].parent} holds several shards with the number {twice[0]:05d}: move all but "
            "those of one image set away"
        )


def resolve_image_set(config: Config, environment: Mapping[str, str] = os.environ) -> Config:
    """`config` with the image set that data.source=auto means; unchanged if it names one.

    That is the set of the pack at data.path, else the only one in the image folder, else the only
    pack's. Every step calls this once, after its words are parsed. Raises UserError if several
    image sets lie in the folder.
    """
    # Images at all
    if config.workload == "concept":
        raise UserError(
            "workload=concept trains on documents, not on images: its steps are prepare, train, "
            "predict, score and report (docs/lcm.md)"
        )

    # Named by the user
    data = config.data
    if data.source != "auto":
        return config

    # Named by the pack
    manifest = Path(data.path) / "manifest.json" if data.path else None
    if manifest and manifest.is_file():
        return overlaid(config, {"data": {"source": read_json(manifest).get("source")}})

    # Named by its folders
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
    # Sets of images
    resolution = pack.partition("/")[0].removeprefix("*_")
    sets = image_sets(root, resolution) if root and root.is_dir() else []
    sources = {image_set.source for image_set in sets}
    if len(sources) > 1:
        raise UserError(
            f"{root} holds several image sets: {'; '.join(map(str, sets))}: "
            "name one with data.source"
        )
    # Packs alone
    if not sources and packs:
        manifests = packs.glob(f"{pack}/manifest.json")
        names = {path.parent.parent.name.rpartition("_")[0] for path in manifests}
        sources = names & {packaging.source for packaging in PACKAGINGS}
    return sources.pop() if len(sources) == 1 else "train"

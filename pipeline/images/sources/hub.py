"""ImageNet as Hugging Face first had it: train_images_0.tar.gz … train_images_4.tar.gz.

Their members are images without folders; their names end in the synset, n01440764_10026_n01440764
.JPEG. The original names, which only begin with it, are read too.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.formats import is_hidden, is_image
from pipeline.images.sources.base import Item, Source, Stretch, no_images
from pipeline.images.sources.gzipped import cut, stream_members
from pipeline.images.sources.packagings import Location
from pipeline.images.sources.synsets import named_synset
from pipeline.images.sources.tars import ignore, read, reading
from pipeline.images.walk import Ignored


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_hub(location.paths[0].parent, location.paths)


def open_hub(place: Path, archives: list[Path]) -> Source:
    """The image set in gzipped tars, which are only ever read forwards; `place` is their folder.

    Opening it reads each as far as its first image. Raises UserError, in the opening or when the
    reading comes upon it, for a damaged or incomplete archive, for members that do not belong in
    one, and for an image whose name does not say its class.
    """

    def stretches() -> Iterator[Stretch]:
        source.ignored = Ignored()
        for archive in archives:
            yield from cut(stream_hub(archive, source), f"{archive.name} ")

    # Classes are known at the end
    source = Source("hub", place, None, None, stretches, False)
    for archive in archives:
        with closing(stream_hub(archive, source)) as items:
            if next(items, None) is None:
                raise no_images(archive)
    return source


def stream_hub(place: Path, source: Source) -> Generator[Item, None, None]:
    """The images of one gzipped tar with their bytes, in its order; counts `source.ignored`."""
    with reading(str(place), "gzipped tar"):
        for archive, member in stream_members(place):
            if member.isdir():
                continue
            if is_hidden(member.name):
                source.ignored.add(member.name, b"")
            elif is_image(member.name):
                name = name_image(member.name, place)
                yield Item(name, read(archive, member), member.size)
            else:
                ignore(source.ignored, archive, member)


def name_image(file: str, place: Path) -> str:
    """<synset>/<original name> of an image; raises UserError unless its name says one synset."""
    # The synset, before or after
    path = PurePosixPath(file)
    first, last = named_synset(path.name), named_synset(path.stem.rpartition("_")[2])
    synsets = {first, last} - {None}
    if len(synsets) != 1:
        said = f"says the synsets {first} and {last}" if synsets else "says no synset of ImageNet"
        raise UserError(
            f"{place} holds {file}, whose name {said}: give the original archives of imagenet-1k"
        )

    # The name as it was before
    synset = first or last
    return f"{synset}/{path.stem.removesuffix(f'_{synset}')}{path.suffix}"

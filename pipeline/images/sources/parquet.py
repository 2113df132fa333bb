"""Image sets in Parquet files as Hugging Face lays out imagenet-1k.

Columns are `image`, a struct of the file's `bytes` and `path`, and `label`, a whole number. The
schema may have the names of the classes; ImageNet's labels count through the sorted synsets. Bytes
are read by the processes that decode them, in small batches, since a row group may have 500 MB.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import UserError
from pipeline.images.sources.base import Item, Row, Source, Stretch, check_classes
from pipeline.images.sources.class_names import ClassNames, name_classes, proper_names
from pipeline.images.sources.packagings import Location

BATCH = 128  # rows that a worker takes at a time: those before them in the group are read too
READ_ROWS = 16  # rows of bytes in memory at a time
BUFFER = 2**20  # bytes; without one a whole row group is read at once
MOST_ROWS = 1024  # of a stretch
COLUMNS = {
    "image.bytes": {"BYTE_ARRAY"},
    "image.path": {"BYTE_ARRAY"},
    "label": {"INT32", "INT64"},
}


@contextmanager
def open_file(path: str | Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; raises UserError if it, or a part that is read, is damaged or missing."""
    # Errors of three libraries
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a Parquet file ({reason}): delete it and get it again"
        ) from error


# --- listing -----------------------------------------------------------------------------------


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_parquet(location.root, location.paths)


def open_parquet(place: Path, shards: list[Path]) -> Source:
    """The image set in Parquet files; `place` is their folder. Opening it reads all labels.

    Raises UserError for damaged shards, missing columns, rows without bytes, shards that name the
    classes differently, and labels that have no name or disagree with the file name.
    """
    # Labels and names of the classes
    shards = sorted(shards)
    labels = {shard: count_labels(shard) for shard in shards}
    images = next(first_images(shard) for shard in shards if labels[shard] or shard == shards[-1])
    names = name_classes(sum(labels.values(), Counter()), images, given_names(shards))
    # Images by class
    counts: Counter[str] = Counter()
    for shard in shards:
        for label, num in labels[shard].items():
            counts[names.of(label, "", str(shard))] += num
    source = Source(
        kind="parquet",
        place=place,
        classes=check_classes(place, counts),
        num_images=counts.total(),
        stretches=lambda: (part for shard in shards for part in list_shard(shard, names)),
        ordered=False,
        batch=BATCH,
    )
    next(source.stretches())  # compares names and labels of the first
    return source


def given_names(shards: list[Path]) -> list[str] | None:
    """The names of the classes in the schemas' metadata; None without.

    Raises UserError if two shards have other names.
    """
    names = {shard: names_in_schema(shard) for shard in shards}
    first = names[shards[0]]
    if rival := next((shard for shard in shards if names[shard] != first), None):
        raise UserError(
            f"{shards[0]} and {rival} name their classes differently: give shards of one image set"
        )
    return first and proper_names(first, shards[0])


def names_in_schema(shard: Path) -> list[str] | None:
    """The names of the labels that Hugging Face's datasets put into the schema; None without."""
    # Text of the metadata
    with open_file(shard) as file:
        text = (file.schema_arrow.metadata or {}).get(b"huggingface", b"null")

    # Labels in it
    try:
        names = json.loads(text)["info"]["features"]["label"]["names"]
    except (ValueError, TypeError, KeyError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if names and is_list else None


def first_images(shard: Path) -> list[tuple[int | None, str]]:
    """Labels and file names of a shard's first row group, if it has one."""
    with open_file(shard) as file:
        if not file.num_row_groups:
            return []
        table = file.read_row_group(0, ["label", "image.path"], use_threads=False)
        images = table.column("image").to_pylist()
        paths = [PurePosixPath((image or {}).get("path") or "").name for image in images]
        return list(zip(table.column("label").to_pylist(), paths, strict=True))


def count_labels(shard: Path) -> Counter[int | None]:
    """How many images of each label a shard holds, once its columns are as they should be."""
    counts: Counter[int | None] = Counter()
    with open_file(shard) as file:
        check_columns(shard, file)
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, ["label"], use_threads=False).column("label")
            counts.update(column.to_pylist())
    return counts


def check_columns(shard: Path, file: pq.ParquetFile) -> None:
    """Raise UserError if a column is missing, of another type, or known to lack bytes."""
    # Type of each column
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
    types = {leaf.path: leaf.physical_type for leaf in leaves}
    bad = [name for name, allowed in COLUMNS.items() if types.get(name) not in allowed]
    if bad:
        raise UserError(
            f"{shard} has no column {' and '.join(bad)} of the expected type (its columns: "
            f"{', '.join(types)}): give shards with image (bytes, path) and label"
        )

    # Images without bytes
    at = list(types).index("image.bytes")
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(at).statistics
        if statistics is not None and statistics.null_count:
            raise no_bytes(shard)


def no_bytes(shard: str | Path) -> UserError:
    """The error for rows whose image is only named."""
    return UserError(
        f"{shard} has rows without image bytes: make the shard again with the images embedded"
    )


def list_shard(shard: Path, names: ClassNames) -> Iterator[Stretch]:
    """The images of one shard: a stretch for each row group, or several for a long one."""
    with open_file(shard) as file:
        start = 0  # of the group, in rows of the shard
        for group in range(file.num_row_groups):
            # names of all rows, without the bytes of the images
            table = file.read_row_group(group, ["label", "image.path"], use_threads=False)
            labels = table.column("label").to_pylist()
            images = table.column("image").to_pylist()
            items = [
                Item(
                    name_row(shard, names, start + row, label, (image or {}).get("path")),
                    Row(str(shard), group, row),
                )
                for row, (label, image) in enumerate(zip(labels, images, strict=True))
            ]
            # stretches of the group
            for row in range(0, len(items), MOST_ROWS):
                yield Stretch(f"{shard.name} {start + row}", items[row : row + MOST_ROWS])
            start += len(items)


def name_row(shard: Path, names: ClassNames, row: int, label: int | None, path: str | None) -> str:
    """The name <class>/<file> of a row, which counts through the shard.

    Hugging Face puts the synset behind the file's stem once more; the name is as it was before.
    """
    file = PurePosixPath(path or f"{shard.stem}_{row:08d}.jpg")
    name = names.of(label, file.name, f"{shard}: row {row}")
    return f"{name}/{file.stem.removesuffix(f'_{name}')}{file.suffix}"


# --- reading -----------------------------------------------------------------------------------


def read_rows(rows: Sequence[Row]) -> list[bytes]:
    """The image files in consecutive rows of one row group; raises UserError if they lack.

    Only a few rows are in memory at a time, but those before the first are read and dropped.
    """
    # Range within the group
    first, end = rows[0].row, rows[-1].row + 1
    contents: list[bytes | None] = []
    # Few rows at a time
    with open_file(rows[0].path) as file:
        batches = file.iter_batches(READ_ROWS, [rows[0].group], ["image.bytes"], use_threads=False)
        for number, batch in enumerate(batches):
            start = number * READ_ROWS  # of the batch; all but the last are full
            if start >= end:
                break
            column = batch.column("image")[max(first - start, 0) : end - start]
            contents += [image and image["bytes"] for image in column.to_pylist()]
    # None may lack
    files = [image for image in contents if image is not None]
    if len(files) < len(rows):
        raise no_bytes(rows[0].path)
    return files

"""Image sets as others package them, made from a tree ROOT/train/<class>/*.JPEG, for tests.

Each writer puts its files beside the tree, named and laid out as the originals are, and leaves the
tree alone. Shards have their images in an order shuffled with a fixed seed, as the originals do.
"""

import io
import json
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.bench.photos import PHOTOS, write_photos
from pipeline.config.image_sets import NO_CLASS
from pipeline.images.sources.synsets import sorted_synsets

# One for each photograph, far apart in both orders.
SYNSETS = (
    "n02119789",
    "n01440764",
    "n15075141",
    "n02100735",
    "n07930864",
    "n03255030",
    "n04266014",
)


def write_synset_photos(root: Path, per_class: int, size: int = 128) -> dict[str, bytes]:
    """Write photographs under synset names, for example n01440764/n01440764_3.JPEG.

    Returns what `tree` does.
    """
    write_photos(root, per_class, size)
    for photo, synset in zip(PHOTOS, SYNSETS, strict=True):
        folder = (root / "train" / photo).rename(root / "train" / synset)
        for file in list(folder.iterdir()):
            file.rename(folder / file.name.replace(photo, synset))
    return tree(root)


def tree(root: Path) -> dict[str, bytes]:
    """The images of the tree: <class>/<file> -> bytes, sorted."""
    train = root / "train"
    files = sorted(train.glob("*/*.JPEG"), key=lambda file: (file.parent.name, file.name))
    return {str(file.relative_to(train)): file.read_bytes() for file in files}


def shuffled(root: Path) -> list[Path]:
    """The image files of the tree in the order of shards."""
    files = sorted((root / "train").glob("*/*.JPEG"))
    random.Random(0).shuffle(files)
    return files


def write_tar_of_tars(root: Path) -> Path:
    """ILSVRC2012_img_train.tar with a tar for each class; GNU tar makes all of it."""
    train, tars = root / "train", root / "class_tars"
    tars.mkdir()
    for folder in sorted(train.iterdir()):
        files = [file.name for file in folder.iterdir()]
        subprocess.run(["tar", "cf", tars / f"{folder.name}.tar", "-C", folder, *files], check=True)
    place = root / "ILSVRC2012_img_train.tar"
    names = [file.name for file in tars.iterdir()]
    subprocess.run(["tar", "cf", place, "-C", tars, *names], check=True)
    for file in tars.iterdir():
        file.unlink()
    tars.rmdir()
    return place


def write_gzipped(root: Path, top: str = "train_blurred") -> Path:
    """train_blurred.tar.gz of TOP/<class>/*.jpg, with its folders, by GNU tar; TOP may be "."."""
    place = root / "train_blurred.tar.gz"
    rename = rf"s,^\./,{top}/,;s,JPEG$,jpg,"
    command: list[str | Path] = ["tar", "czf", place, "--transform", rename, "-C", root / "train"]
    subprocess.run([*command, "--exclude=./.*", "."], check=True)
    return place


def write_folders_tar(root: Path) -> Path:
    """train.tar of train/<class>/*.JPEG, with its folders, by GNU tar."""
    place = root / "train.tar"
    subprocess.run(["tar", "chf", place, "-C", root, "--exclude=.*", "train"], check=True)
    return place


def write_folders_zip(root: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """train.zip of train/<class>/*.JPEG, with its folders, as `zip -r` and the Finder have it."""
    place, train = root / "train.zip", root / "train"
    with zipfile.ZipFile(place, "w", method) as archive:
        archive.mkdir("train")
        for folder in sorted(train.iterdir()):
            archive.mkdir(f"train/{folder.name}")
            for file in sorted(folder.iterdir(), reverse=True):
                archive.write(file, f"train/{folder.name}/{file.name}")
        archive.writestr("__MACOSX/train/._train", b"")
    return place


def write_hub(root: Path, double: bool = True) -> list[Path]:
    """data/train_images_0.tar.gz … _4.tar.gz, flat, as imagenet-1k was; `double`: synset twice."""
    files = shuffled(root)
    (root / "data").mkdir(exist_ok=True)
    places = [root / "data" / f"train_images_{number}.tar.gz" for number in range(5)]
    for number, place in enumerate(places):
        with tarfile.open(place, "w:gz") as archive:
            for file in files[number::5]:
                end = f"_{file.parent.name}" if double else ""
                add(archive, f"{file.stem}{end}.JPEG", file.read_bytes())
    return places


def write_adm(root: Path) -> Path:
    """ROOT/adm/train/*.JPEG, whose names begin with their classes; returns ROOT/adm."""
    train = root / "adm" / "train"
    train.mkdir(parents=True)
    for file in shuffled(root):
        (train / file.name).write_bytes(file.read_bytes())
    return train.parent


def write_flat(root: Path) -> Path:
    """ROOT/flat/train/00000.JPEG and so on; returns ROOT/flat."""
    train = root / "flat" / "train"
    train.mkdir(parents=True)
    for number, file in enumerate(shuffled(root)):
        (train / f"{number:05d}.JPEG").write_bytes(file.read_bytes())
    return train.parent


def flat_as_folders(root: Path) -> Path:
    """ROOT/plain/train/no_class/ with the images of `write_flat`; returns ROOT/plain."""
    folder = root / "plain" / "train"
    folder.mkdir(parents=True)
    (folder / NO_CLASS).symlink_to(root / "flat" / "train")
    return folder.parent


def write_edm(root: Path, resolution: int = 8, packed: bool = True, labelled: bool = True) -> Path:
    """ROOT/edm/imagenet-8x8.zip (or the folder train/) as EDM's dataset_tool writes it.

    Returns ROOT/edm. Class k of the tree has the label k.
    """
    folder, classes = root / "edm", sorted(file.name for file in (root / "train").iterdir())
    folder.mkdir()
    files, labels = {}, []
    for number, file in enumerate(shuffled(root)):
        name = f"{number // 1000:05d}/img{number:08d}.png"
        content = io.BytesIO()
        with Image.open(file) as image:
            small = image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS)
            small.save(content, "PNG", compress_level=0, optimize=False)
        files[name] = content.getvalue()
        labels.append([name, classes.index(file.parent.name)])
    about = json.dumps({"labels": labels if labelled else None}).encode()
    files["dataset.json"] = about
    if packed:
        with zipfile.ZipFile(folder / f"imagenet-{resolution}x{resolution}.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return folder
    for name, data in files.items():
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / name).write_bytes(data)
    return folder


def edm_as_folders(root: Path) -> Path:
    """ROOT/plain/train/<class>/ with the images of `write_edm`, unpacked; returns ROOT/plain."""
    train = root / "plain" / "train"
    (place,) = (root / "edm").iterdir()
    if place.is_dir():
        files = {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}
    else:
        with zipfile.ZipFile(place) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    labels = dict(json.loads(files.pop("dataset.json"))["labels"] or [])
    for name, data in files.items():
        folder = f"class{labels[name]:04d}" if labels else NO_CLASS
        (train / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (train / folder / name).write_bytes(data)
    return train.parent


def write_parquet(root: Path, shards: int = 2, row_group: int = 16) -> list[Path]:
    """data/train-00000-of-00002.parquet and so on, as Hugging Face has imagenet-1k."""
    files = shuffled(root)
    (root / "data").mkdir(exist_ok=True)
    places = [root / "data" / f"train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    for shard, place in enumerate(places):
        rows = [hub_row(file) for file in files[shard::shards]]
        pq.write_table(pa.Table.from_pylist(rows, HUB_SCHEMA), place, row_group_size=row_group)
    return places


HUB_SCHEMA = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
    }
)


def hub_row(file: Path) -> dict[str, object]:
    """One image as a row; its path ends in the synset once more."""
    path = f"{file.stem}_{file.parent.name}.JPEG"
    label = sorted_synsets().index(file.parent.name)
    return {"image": {"bytes": file.read_bytes(), "path": path}, "label": label}


def write_webdataset(root: Path, shards: int = 2) -> list[Path]:
    """imagenet1k-train-0000.tar and so on with KEY.cls, KEY.jpg and KEY.json, as timm has it."""
    files = shuffled(root)
    places = [root / f"imagenet1k-train-{i:04d}.tar" for i in range(shards)]
    for shard, place in enumerate(places):
        with tarfile.open(place, "w") as archive:
            for file in files[shard::shards]:
                label = sorted_synsets().index(file.parent.name)
                about = json.dumps({"filename": file.name, "label": label})
                add(archive, f"{file.stem}.cls", str(label).encode())
                add(archive, f"{file.stem}.jpg", file.read_bytes())
                add(archive, f"{file.stem}.json", about.encode())
    return places


def write_empty_shard(root: Path, number: int) -> Path:
    """A shard of the set of `write_webdataset` whose writer had no image, but an index."""
    place = root / f"imagenet1k-train-{number:04d}.tar"
    with tarfile.open(place, "w") as archive:
        add(archive, "index.json", b"{}")
    return place


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A plain file in a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def make_tar(place: Path, files: list[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of (name, content); a name that ends in "/" is a folder, "->" a link."""
    with tarfile.open(place, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name.strip("/->") if name[-1] in "/>" else name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            if name.endswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return place


def make_zip(place: Path, files: list[tuple[str, bytes]], **options: int) -> Path:
    """A zip of (name, content); a name that ends in "->" is a link."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in files:
            member = zipfile.ZipInfo(name.removesuffix("->"))
            member.external_attr = (0o120777 if name.endswith("->") else 0o100644) << 16
            archive.writestr(member, content, **options)
    return place


def hub_table(**columns: object) -> pa.Table:
    """Three good rows, with columns of another kind."""
    images = [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": ""}, {"bytes": b"c"}]
    good = {"image": pa.array(images, HUB_SCHEMA.field("image").type)}
    return pa.table(good | {"label": pa.array([0, 0, 278])} | columns)

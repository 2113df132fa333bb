"""Writers of image sets that are packaged as arrays, as their authors packaged them."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

CIFAR_FOLDER = "cifar-10-batches-py"


def planar(images: np.ndarray) -> np.ndarray:
    """Images (n,H,W,3) as rows of red, green and blue planes."""
    return np.stack([image.transpose(2, 0, 1).ravel() for image in images])


def write_batches(
    root: Path,
    images: dict[str, np.ndarray],
    labels_by_synset: dict[str, int],
    batches: int,
    npz: bool,
) -> list[Path]:
    """Downsampled ImageNet: train_data_batch_1 … in `root`, each with images of every class.

    `images`: uint8 (n,H,W,3) by synset; the labels count from 1. Returns the files.
    """
    rows = np.concatenate([planar(part) for part in images.values()])
    labels = np.concatenate([[labels_by_synset[s]] * len(part) for s, part in images.items()])
    shuffled = np.random.default_rng(0).permutation(len(rows))
    files = []
    for number, here in enumerate(np.array_split(shuffled, batches), start=1):
        batch = {"data": rows[here], "labels": labels[here].tolist(), "mean": rows.mean(axis=0)}
        files.append(write_batch(root / f"train_data_batch_{number}", batch, npz))
    return files


def write_batch(file: Path, batch: dict[str, Any], npz: bool) -> Path:
    """One batch, pickled as Python 3 did by default in 2017, or as .npz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if npz:
        file = file.with_name(f"{file.name}.npz")
        np.savez(file, **batch)
    else:
        file.write_bytes(pickle.dumps(batch, protocol=3))
    return file


def write_cifar(root: Path, images: dict[str, np.ndarray], packed: bool) -> Path:
    """CIFAR-10 in `root`: `images` uint8 (n,32,32,3) by label name, spread over five batches.

    File k of a class is <label name>_k.png. There is a test batch too, of black images. Returns
    the folder, or the .tar.gz where it is `packed`.
    """
    names = [f"{label}_{k}.png" for label, part in images.items() for k in range(len(part))]
    labels = [label for label, part in enumerate(images.values()) for _ in part]
    rows = np.concatenate([planar(part) for part in images.values()])
    members: dict[str, Any] = {
        "batches.meta": {b"label_names": [label.encode() for label in images]},
        "test_batch": cifar_batch(np.zeros_like(rows), labels, names),
    }
    for number in range(5):
        here = slice(number, None, 5)
        members[f"data_batch_{number + 1}"] = cifar_batch(rows[here], labels[here], names[here])
    folder = root / CIFAR_FOLDER
    folder.mkdir(parents=True)
    for name, value in members.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol=2))
    return pack_cifar(folder) if packed else folder


def cifar_batch(rows: np.ndarray, labels: list[int], names: list[str]) -> dict[bytes, Any]:
    """What a batch's pickle holds."""
    return {b"data": rows, b"labels": labels, b"filenames": [name.encode() for name in names]}


def pack_cifar(folder: Path) -> Path:
    """The folder as cifar-10-python.tar.gz beside it; the folder goes."""
    packed = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return packed


def python2_batch(rows: np.ndarray, labels: list[int], names: list[str]) -> bytes:
    """The same batch as Python 2.7 and numpy 1 pickled it (protocol 2), opcode by opcode."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256  # SHORT_BINSTRING, BINSTRING
        size = len(value).to_bytes(1 if short else 4, "little")
        return (b"U" if short else b"T") + size + value

    def number(value: int) -> bytes:  # BININT
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    shape = number(rows.shape[0]) + number(rows.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    label_list = b"](" + b"".join(map(number, labels)) + b"e"
    name_list = b"](" + b"".join(text(name.encode()) for name in names) + b"e"
    items = text(b"data") + array + text(b"labels") + label_list + text(b"filenames") + name_list
    return b"\x80\x02}(" + items + b"u."

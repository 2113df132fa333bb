"""Places that cannot be written are named before anything is read or converted."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import export, import_weights
from pipeline.base.errors import UserError


@pytest.fixture
def samples(tmp_path: Path) -> str:
    folder = tmp_path / "samples"
    folder.mkdir()
    np.save(folder / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(folder / "labels.npy", np.array([0, 0]))
    (folder / "sample.json").write_text(json.dumps({"data": {"classes": ["a"]}}))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    return f"samples={folder}"


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (["png=file/out"], "file/out cannot be written"),
        (["npz=file/out.npz"], "file/out.npz cannot be written"),
        (["png=out", "npz=out"], "png and npz are both .*out: give each"),
        (["png=link"], "link exists"),
    ],
)
def test_an_export_names_its_target(
    targets: list[str], problem: str, samples: str, tmp_path: Path
) -> None:
    words = [target.replace("=", f"={tmp_path}/") for target in targets]
    with pytest.raises(UserError, match=problem):
        export.main([samples, *words])


def test_an_import_names_its_target(samples: str, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").mkdir()
    for place, problem in (("w", "is a folder"), ("file/w", "cannot be written")):
        with pytest.raises(UserError, match=problem):
            import_weights.main(["nowhere.pth", f"{tmp_path}/{place}.safetensors"])

"""The Python on the page about training: it makes the images that `pipeline.sample` makes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import sample
from pipeline.compute import draws
from pipeline.data.reader import to_uint8
from tests.conftest import ROOT
from tests.random_networks import save_network

WEIGHTS = Path("results/smoke/shapes_16-box/train/weights.safetensors")


@pytest.mark.parametrize("kind", ["unet", "edm2"])
def test_the_page_makes_the_samples_of_euler(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/training.md").read_text().partition("## The network in Python\n")[2]
    code = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    code, noises = re.subn(r"torch\.randn\(10, 3, 16, 16\)", "noise", code)
    assert noises == 1
    monkeypatch.chdir(tmp_path)
    save_network(WEIGHTS, resolution=16, kind=kind)
    noise = draws.normal(0, draws.SAMPLE_NOISE, torch.arange(10), (3, 16, 16))
    names = {"noise": noise}
    exec(code, names)
    more = ["sample.num=10", "sample.solver=euler", "sample.steps=50", "sample.guidance=1"]
    sample.main(["experiment=tiny", *more, f"weights={WEIGHTS}", "out=samples", "seed=0"])
    images = np.load("samples/images.npy")
    page_images = to_uint8(names["x"]).permute(0, 2, 3, 1).numpy()
    assert np.abs(images.astype(int) - page_images.astype(int)).max() <= 1

"""Networks that several modules of tests use."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.scoring.extractors import Extractor, load_extractor
from pipeline.scoring.fidelity import load_torch_fidelity


@pytest.fixture(scope="session")
def efficientnet() -> Extractor:
    """EfficientNet-Lite0 on the CPU."""
    return load_extractor("efficientnet-lite0", None, torch.device("cpu"))


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random Inception weights."""
    return save_random_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def save_random_inception(path: Path) -> Path:
    """Save Inception weights that are random but keep the size of activations."""

    class Unloaded(load_torch_fidelity().FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keep the weights that PyTorch starts with."""

    torch.save({}, path)
    torch.manual_seed(0)
    net = Unloaded("random", ["2048"], feature_extractor_weights_path=str(path))
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(net.state_dict(), path)
    return path

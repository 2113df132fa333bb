"""What the plan of an experiment on documents says."""

from pathlib import Path

import numpy as np

from pipeline.concept import sizes
from pipeline.concept.network import LCM
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.pack import open_documents
from pipeline.concept.workload import NextSentence
from pipeline.config.model_keys import LCMKeys
from pipeline.prepare import prepare
from tests.conftest import resolved


def test_the_published_network() -> None:
    text = sizes.facts(resolved("experiment=lcm_mse_1_6b", "data.pack_dir=none"))
    assert "1649.2 M parameters" in text
    assert "250,000 steps of 1,792 = 448,000,000 pieces of documents" in text
    assert "epochs: not known yet" in text


def test_parameters_are_those_of_the_network() -> None:
    config = resolved("experiment=lcm_mse_smoke")
    assert isinstance(config.model, LCMKeys)
    nothing = Normaliser(np.zeros(32, np.float32), np.ones(32, np.float32))
    net = LCM(config.model, nothing, 24)
    assert sizes.num_parameters(config) == sum(p.numel() for p in net.parameters())


def test_epochs_once_the_pack_is_there(tmp_path: Path) -> None:
    words = ["experiment=lcm_mse_smoke", f"data.pack_dir={tmp_path}"]
    prepare(words)
    config = resolved(*words)
    num = NextSentence(config, open_documents(config)).num_items
    assert sizes.epochs(config) == f"{19_200 / num:,.1f} epochs of {num:,}"

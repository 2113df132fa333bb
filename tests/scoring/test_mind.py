"""The Monge Inception distance against torch-fidelity's development version, and in a result."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import evaluate, reference
from pipeline.base.errors import UserError
from pipeline.scoring.mind import monge_distance
from tests.conftest import ROOT
from tests.evaluate_world import World, made, small_steps, world

__all__ = ["made", "small_steps", "world"]  # fixtures

with np.load(ROOT / "tests/fixtures/mind.npz") as file:
    EXPECTED = {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("name", ["ab_1000_2020", "ab_100_7", "ac_1000_2020", "aa_1000_2020"])
def test_values_of_torch_fidelity(name: str) -> None:
    pair, directions, seed = name.split("_")
    one, other = (EXPECTED[side] for side in pair)
    for first, second in ((one, other), (other, one)):
        value = monge_distance(first, second, int(seed), int(directions))
        assert value == pytest.approx(float(EXPECTED[name]), rel=1e-5, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_a_shift_moves_as_far_as_its_length(num: int, width: int, shift: float, seed: int) -> None:
    """Of one vector for all images: 3 D times the mean of its squared projections."""
    features = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    vector = torch.full((width,), shift)
    value = monge_distance(features, features[torch.randperm(num)] + vector, seed)
    generator = torch.Generator().manual_seed(seed)
    units = torch.nn.functional.normalize(torch.randn(1000, width, generator=generator), dim=1)
    assert value == pytest.approx(3 * width * float((units @ vector).square().mean()), abs=1e-3)
    assert value == pytest.approx(3 * float(vector.square().sum()), rel=0.35, abs=1e-3)


def test_the_score_has_a_bracket_and_a_protocol(world: World) -> None:
    world.run(evaluate, "evaluate.metrics=[mind]")
    result = world.result()
    (score,) = result["metrics"]
    assert (score["name"], score["better"]) == ("mind_efflite0_96", "lower")
    assert score["label"] == "Monge distance, EfficientNet-Lite0 at 96 px"
    bracket = score["bracket"]
    assert score["num_images"] == bracket["num_images"] == 21
    assert score["value"] == bracket["value"] and 0 < bracket["floor"] < bracket["ceiling"] / 3
    assert result["protocol"]["mind_directions"] == 1000


def test_other_protocols_do_not_name_it(world: World) -> None:
    world.run(evaluate, "evaluate.metrics=[kid]")
    assert "mind_directions" not in world.result()["protocol"]


def test_statistics_alone_are_refused(world: World) -> None:
    plain = world.root / "plain.npz"
    reference.main([*world.words, f"reference={world.root / 'reference'}", f"export={plain}"])
    with pytest.raises(UserError, match="needs real images, and the reference holds statistics"):
        world.compare(world.root / "samples", plain, "evaluate.metrics=[mind]")

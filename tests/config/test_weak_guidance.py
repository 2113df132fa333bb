"""A search among guidance weights of at most 1: a weight below 1 is guidance, too."""

import pytest

from pipeline.base.errors import UserError
from pipeline.config.samplers import notes
from pipeline.config.selection import most_guided
from pipeline.workflow.selection import all_recipes
from tests.conftest import resolved

GUIDED = ("experiment=tiny", "select.search=grid", "sample.guide={experiment: tiny}")


@pytest.mark.parametrize("weights", ["[0.5,1]", "[1,0.25,1.5]", "[0,1]"])
def test_the_guide_is_there_for_every_try(weights: str) -> None:
    config = resolved(*GUIDED, f"select.guidance={weights}")
    assert most_guided(config).guidance < 1
    assert [guide.experiment for guide in all_recipes(config)] == ["tiny"]


def test_the_largest_weight_is_farther_from_one() -> None:
    assert most_guided(resolved(*GUIDED, "select.guidance=[0.5,1,3]")).guidance == 3


def test_intervals_of_no_guidance_are_refused() -> None:
    words = ("experiment=tiny", "select.search=grid", "select.intervals=[[0,1],[0.5,1]]")
    with pytest.raises(UserError, match="no try is guided, with sample.guidance=1: give select"):
        resolved(*words, "sample.guidance=1")
    with pytest.raises(UserError, match="no try is guided"):
        resolved(*words, "sample.guidance=2", "select.guidance=[1]")
    assert resolved(*words, "sample.guidance=2").select


def test_a_guide_without_guidance_is_told() -> None:
    words = ("experiment=tiny", "sample.guide=g.safetensors", "sample.guidance_interval=[0.2,1]")
    told = "sample.guidance=1 guides nothing, so that sample.guide and sample.guidance_interval"
    assert any(
        note.startswith(told) for note in notes(resolved(*words, "sample.guidance=1").sample)
    )
    for guided in (resolved(*words, "sample.guidance=2"), resolved("sample.guidance=1")):
        assert not any("guides nothing" in note for note in notes(guided.sample))

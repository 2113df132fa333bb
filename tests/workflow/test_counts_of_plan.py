"""Counts and sizes in the plan against those counted another way."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import described
from pipeline.training.checkpoint import is_milestone
from pipeline.trials.search import Candidate, search
from pipeline.workflow import selection, sizes
from tests.conftest import resolved

BASE = resolved("experiment=tiny")


@given(st.integers(1, 50), st.integers(1, 300), st.integers(1, 2000))
def test_milestones_are_counted_as_they_are_kept(batch: int, every: int, images: int) -> None:
    train = BASE.train.model_copy(update={"batch": batch, "images": images})
    steps = range(1, math.ceil(images / batch) + 1)
    assert train.num_milestones(every) == sum(is_milestone(k, batch, every) for k in steps)


def test_no_more_checkpoints_than_steps_are_planned() -> None:
    text = sizes.facts(resolved("experiment=tiny", "runtime.milestone_images=10"))
    assert "16.6 MB each, 22 kept" in text  # 20 steps


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["select.intervals=[[0,1],[0.5,1]]"], 2),
        (["select.guidance=[1,3]", "select.intervals=[[0,1],[0.5,1]]", "select.max_tries=9"], 9),
        (["select.guidance=[1,3]", "select.max_tries=7"], 7),
        (["train.ema=power", "select.guidance=[1,3]", "select.ema_widths=[0.05,0.1]",
          "select.max_tries=9"], 8),
    ],
)  # fmt: skip
def test_a_search_makes_no_more_tries_than_planned(words: list[str], most: int) -> None:
    config = resolved("experiment=tiny", "train.ema_snapshot_images=64", *words)
    assert config.select is not None
    tried: set[Candidate] = set()

    def distance(candidate: Candidate) -> float:
        tried.add(candidate)
        width, low = candidate.ema_width or 0, candidate.interval[0]
        return (width - 0.07) ** 2 + (candidate.guidance - 1.3) ** 2 + low

    search(config.select, config.sample, distance)
    assert config.select.most_tries == most
    assert most - len(config.select.intervals or ()) <= len(tried) <= most


def test_multistep_tries_start_anew_at_the_edges_of_their_intervals() -> None:
    words = ["sample.solver=ab3", "sample.steps=10", "select.num=2", "sample.guidance=2"]
    config = resolved("experiment=tiny", *words, "select.intervals=[[0,1],[0.2,0.8]]")
    # Two tries of two images, each of 10 steps and three starts, with and without the class
    assert selection.cost(config).endswith(f" 4 images, {4 * (10 + 3) * 2} evaluations of networks")


def test_the_disk_holds_the_guide_too() -> None:
    experiment = described([], ["experiment=edm2_smoke"])
    guide = experiment.trainings["guide"].config
    weights = sizes.weight_bytes(guide)
    # Two checkpoints of 7 copies, averages of 2 widths at 2 times, the first one and that of 0.1
    assert sizes.guide_bytes(guide) == (2 * 7 + 2 * 2 + 2) * weights
    assert sizes.guide_bytes(guide) > 1e6
    alone, both = (sizes.facts(experiment.config, guides) for guides in ((), (guide,)))
    assert "194.2 MB in all" in alone and "194.2 MB in all" not in both

"""Samplers that would ignore a key, or be scored on the images that they were made by."""

from pathlib import Path

import pytest

from pipeline import milestones
from pipeline.base.errors import UserError
from pipeline.config.workloads import check_solver
from pipeline.reporting.learned import LearnedSolver
from pipeline.reporting.trials import Choice, Try
from pipeline.sampling.job import check_seed
from tests.conftest import resolved
from tests.test_milestones import World, world

__all__ = ["world"]  # fixture


@pytest.mark.parametrize(
    "word", ["temperature=0.5", "divergence_free=symmetric", "categorical=float64"]
)
def test_keys_of_jumps_are_not_of_velocities(word: str) -> None:
    """They would give the same images another name."""
    with pytest.raises(UserError, match=f"sample.{word} is not possible, since only sample.solver"):
        check_solver(resolved("experiment=tiny", f"sample.{word}").sample, of_tokens=False)
    jumps = resolved("experiment=discrete_smoke", f"sample.{word}").sample
    check_solver(jumps, of_tokens=True)


def test_the_images_of_a_choice_or_a_fit_are_not_reported() -> None:
    attempt = Try(ema_width=None, guidance=1.0, interval=[0, 1], distance=1.0, evaluations=1)
    choice = Choice(
        searched=["guidance"], chosen=attempt, search="grid", tries=[attempt], num=2, seeds=[5, 6],
        sampler="heun-4-select", metric="", images=None, weights="", guide=None,
    )  # fmt: skip
    solver = LearnedSolver(
        times=[0.0, 1.0], coefficients=[[1.0, 1.0]], sampler="learned-1", weights="", guide=None,
        num=1, seed=7, error=0.0, evaluations=0, tries=[],
    )  # fmt: skip
    check_seed(7, choice, None)
    check_seed(6, None, solver)
    with pytest.raises(UserError, match="seed=6 made the images by which this sampler was chosen"):
        check_seed(6, choice, solver)
    with pytest.raises(UserError, match="seed=7 .* was fitted, .* give another seed"):
        check_seed(7, choice, solver)


def test_milestones_of_velocities_do_not_jump(world: World) -> None:
    run = world.train("plain")
    with pytest.raises(UserError, match="sample.solver=jump is not possible"):
        milestones.prepare(world.words(Path(run), world.root / "out", "sample.solver=jump"))

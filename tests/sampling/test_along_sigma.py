"""Steps along the noise level against EDM2's own samples, and against the exact solution."""

import pytest
import torch
from torch import Tensor

from pipeline.config.schema import Sample
from pipeline.sampling import along_sigma, strip, time_grids
from pipeline.sampling.field import Field
from tests.conftest import resolved
from tests.networks.edm2_reference import Reference

REFERENCE = Reference()


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", "sample.grid=sigma", *words).sample


@pytest.mark.parametrize(
    ("steps", "guidance", "name"),
    [
        (4, 1.0, "sampled_4"),
        (18, 1.0, "sampled_18"),
        (4, 1.7, "sampled_4_autoguided_1.7"),
        (18, 1.7, "sampled_18_autoguided_1.7"),
    ],
)
def test_images_equal_those_of_the_reference(steps: int, guidance: float, name: str) -> None:
    # The sampler of the reference
    keys = sample(
        *("sample.solver=heun", f"sample.steps={steps}", f"sample.guidance={guidance}"),
        "sample.precision=fp32",
    )
    net, guide = REFERENCE.network(), REFERENCE.network("guide")
    labels = REFERENCE["sampler_class_index"]
    field = Field(keys, net, labels, REFERENCE.num_classes, guide)
    times = time_grids.times(keys)
    with torch.inference_mode():
        images = field.solve(time_grids.start_state(REFERENCE["sampler_noise"], times), times)
    # Its images, of up to 7 and in float32 as well, and evaluations
    torch.testing.assert_close(images, REFERENCE[name], atol=1e-4, rtol=1e-5)
    evaluations = (2 * steps - 1) * (1 if guidance == 1 else 2)
    assert field.evaluations.tolist() == [evaluations] * len(labels)


def gaussian(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """The velocity of normal data of mean 0 and deviation 1/2, whose paths are known."""
    t = t.view(-1, 1, 1, 1)
    variance = (t / 2) ** 2 + (1 - t) ** 2
    return x * (t / 4 - (1 - t)) / variance


def deviation(t: float) -> float:
    """That of the states of `gaussian` at time t, along which every path scales."""
    return float(((t / 2) ** 2 + (1 - t) ** 2) ** 0.5)


def error(name: str, steps: int) -> float:
    times = time_grids.times(sample(f"sample.steps={steps}"))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    end = along_sigma.solve(name, gaussian, x, times[:-1])
    exact = x * deviation(float(times[-2])) / deviation(float(times[0]))
    return float((end - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_every_solver_keeps_its_order(name: str, order: int) -> None:
    assert error(name, 128) / error(name, 256) > 0.8 * 2**order


def test_the_strip_shows_states_of_the_same_pass() -> None:
    keys, x = sample("sample.solver=heun", "sample.steps=21"), torch.randn(2, 3, 4, 4)
    sections = strip.sections(time_grids.times(keys), adaptive=False)
    columns = list(
        strip.states(sections, lambda x, times: along_sigma.solve("heun", gaussian, x, times), x)
    )
    whole = along_sigma.solve("heun", gaussian, x, time_grids.times(keys))
    assert torch.equal(columns[-1][1], whole)

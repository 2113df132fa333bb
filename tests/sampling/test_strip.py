"""The denoising strip: the states of the sampler's own grid, each in its cell."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pipeline.config.schema import Sample
from pipeline.drawing import tiles
from pipeline.sampling import solvers, strip, time_grids
from tests.conftest import resolved
from tests.report_inputs import CLASSES, noise


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", *words).sample


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["uniform", "edm"]), st.integers(1, 300))
def test_sections_are_slices_of_the_grid(name: str, steps: int) -> None:
    keys = sample(f"sample.grid={name}", f"sample.steps={steps}")
    parts = strip.sections(keys)
    assert torch.equal(
        torch.cat([parts[0][:1], *(part[1:] for part in parts)]), time_grids.times(keys)
    )
    assert all(one[-1] == other[0] for one, other in pairwise(parts))
    assert 1 <= len(parts) < strip.COLUMNS
    if name == "uniform":
        sizes = [len(part) - 1 for part in parts]
        assert len(parts) == min(steps, strip.COLUMNS - 1) and max(sizes) - min(sizes) <= 1


def wave(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return torch.sin(5 * t).view(-1, 1, 1, 1) + torch.tanh(x)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4"])
def test_states_of_a_fixed_grid_are_exact(name: str) -> None:
    keys, x = sample(f"sample.solver={name}", "sample.steps=21"), torch.randn(2, 3, 4, 4)
    times = time_grids.times(keys)
    found = list(strip.states(keys, wave, x))
    assert len(found) == strip.COLUMNS and found[0][0] == 0 and found[-1][0] == 1
    for time, state in found:
        until = times[times <= time]
        assert until[-1] == time
        assert torch.equal(state, solvers.solve(name, wave, x, until, 1, 1).x)


def test_states_of_dopri5_are_within_its_tolerance() -> None:
    keys, x = sample("sample.solver=dopri5"), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = dict(strip.states(keys, wave, x))
    assert list(found) == [k / 8 for k in range(9)]
    exact = solvers.dopri5(wave, x, 1e-11, 1e-11, stop=0.625).x
    torch.testing.assert_close(found[0.625], exact, atol=1e-4, rtol=0)
    assert torch.equal(found[0.0], x)


@pytest.mark.parametrize("size", [8, 48, 64, 96])
def test_each_state_is_in_its_cell(tmp_path: Path, size: int) -> None:
    states = np.stack([noise(3, column, size) for column in range(3)])
    strip.save_strip(tmp_path / "strip.png", [0.0, 0.98765432, 1.0], states, CLASSES)
    with Image.open(tmp_path / "strip.png") as picture:
        pixels = np.asarray(picture)
    scale = {8: 8, 48: 2, 64: 1, 96: 1}[size]
    cell = size * scale
    for column in range(3):
        left = pixels.shape[1] - tiles.MARGIN - cell - (2 - column) * (cell + 2 * tiles.MARGIN)
        for row in range(3):
            bottom = pixels.shape[0] - tiles.MARGIN - (2 - row) * (cell + tiles.GAP)
            shown = pixels[bottom - cell : bottom, left : left + cell]
            expected = states[column, row].repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(shown, expected)


def test_headings_fit_above_the_smallest_cell() -> None:
    times = [0.0, 1 / 81, 0.125, 0.98765432, 0.99996, 1.0]
    assert [strip.heading(t) for t in times] == [
        "t=0", "t=0.0123", "t=0.125", "t=0.9877", "t=1", "t=1",
    ]  # fmt: skip
    assert all(len(strip.heading(t)) <= strip.CELL // tiles.CHARACTER_WIDTH for t in times)


def test_rows_have_the_names_of_their_classes() -> None:
    labels = np.array([2, 0])
    assert strip.row_names(labels, CLASSES) == [CLASSES[2], CLASSES[0]]
    assert strip.row_names(np.array([-1, -1]), None) == [tiles.NO_CLASS] * 2

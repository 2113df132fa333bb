"""Checkpoints whose tensors are of another type, share memory or are too large for float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import load_fixture, peer_state
from tests.test_import_weights import CIFAR, HEADS, imported, refused, write

State = dict[str, torch.Tensor]
NAME, TWIN = "time_embed.0.bias", "time_embed.2.bias"  # of one shape


@pytest.fixture
def state() -> State:
    """The tensors of a small network, by the reference's names."""
    return peer_state(load_fixture(CIFAR)[0])


def test_tensors_in_the_same_memory_are_written_apart(state: State, tmp_path: Path) -> None:
    state[TWIN] = state[NAME]
    tensors, _ = imported(write(tmp_path / "a.pth", state), HEADS[CIFAR])
    assert torch.equal(tensors["time_mlp.0.bias"], state[NAME])
    assert torch.equal(tensors["time_mlp.2.bias"], state[NAME])


@pytest.mark.parametrize(
    "view",
    [
        lambda value: torch.stack([value, value + 1], -1)[..., 0],
        lambda value: value.double(),
        lambda value: value.movedim(0, -1).contiguous().movedim(-1, 0),
    ],
)
def test_values_are_those_of_any_view(
    view: Callable[[torch.Tensor], torch.Tensor], state: State, tmp_path: Path
) -> None:
    expected, _ = imported(write(tmp_path / "a.pth", state), HEADS[CIFAR])
    views = {name: view(value) for name, value in state.items()}
    tensors, _ = imported(write(tmp_path / "b.pth", views), HEADS[CIFAR])
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_floats_of_8_bits_become_float32(state: State, tmp_path: Path) -> None:
    state[NAME] = state[NAME].to(torch.float8_e4m3fn)
    tensors, _ = imported(write(tmp_path / "a.pth", state), HEADS[CIFAR])
    assert torch.equal(tensors["time_mlp.0.bias"], state[NAME].float())


def test_what_float32_cannot_hold_is_refused(state: State, tmp_path: Path) -> None:
    state[NAME] = torch.full(state[NAME].shape, 1e300, dtype=torch.float64)
    sentence = refused(write(tmp_path / "a.pth", state), HEADS[CIFAR])
    assert f"tensor {NAME} of" in sentence and "does not hold finite floats (as float" in sentence


@pytest.mark.parametrize("size", ["abc", "16.0", "true", "[16]"])
def test_a_resolution_that_is_not_a_number_of_pixels(
    size: str, state: State, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pth", state)
    assert "give a whole number of px" in refused(path, HEADS[CIFAR], f"data.resolution={size}")

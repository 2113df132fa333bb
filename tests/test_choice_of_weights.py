"""A choice by trials counts for the networks that were tried, and for no others."""

from pathlib import Path

import pytest

from pipeline import sample, select
from pipeline.base.errors import UserError
from pipeline.reporting.trials import Choice
from pipeline.training.weights_file import load_weights, read_about, save_weights
from tests.conftest import resolved
from tests.test_select import GOLDEN, GRID, arguments, world

__all__ = ["world"]  # a fixture
CHOSEN = ["experiment=tiny", "sample.selected=true", "select.guidance=[1,2]", "sample.num=4"]


def sampled(out: Path, choice: Path, weights: Path, *more: str) -> None:
    """Sample with a choice."""
    paths = [f"weights={weights}", f"choice={choice}/choice.json", f"out={out}"]
    sample.main([*CHOSEN, *paths, "runtime.device=cpu", *more])


@pytest.mark.parametrize("search", [GRID, pytest.param(GOLDEN, marks=pytest.mark.slow)])
def test_other_weights_are_refused(world: Path, tmp_path: Path, search: list[str]) -> None:
    folder, fewer = tmp_path / "select", ["select.num=2", "select.seeds=[5]"]
    select.main(arguments(world, folder, *search, *fewer))
    right = (folder if search == GOLDEN else world / "train") / "weights.safetensors"
    other, tensors = tmp_path / "other.safetensors", load_weights(right)
    save_weights(other, {k: v + 1e-3 for k, v in tensors.items()}, read_about(right))
    with pytest.raises(UserError, match="the choice of rule select is one for other weights"):
        sampled(tmp_path / "out", folder, other)
    sampled(tmp_path / "out", folder, right)
    assert (tmp_path / "out/sample.json").exists()


def test_a_guide_counts_only_if_it_guides() -> None:
    fields = {"guidance": 2.0, "interval": [0, 1], "distance": 1.0, "evaluations": 1}
    chosen = {"ema_width": None, **fields}
    about = {"search": "grid", "num": 2, "seeds": [5], "sampler": "s", "metric": "m"}
    about |= {"images": 1, "weights": "a", "guide": "b", "chosen": chosen, "tries": [chosen]}
    choice = Choice.model_validate(about | {"searched": ["guidance"]}, strict=False)
    choice.check("a", "b")
    choice.check("a", None)
    for sums in (("a", "c"), ("c", "b"), ("c", None)):
        with pytest.raises(UserError, match="other weights, or another guide"):
            choice.check(*sums)
    earlier = Choice.model_validate(about | {"searched": ["ema_width"]}, strict=False)
    earlier.check("whatever", "b")


WIDTHS = ["train.ema=power", "train.ema_snapshot_images=64", "select.ema_widths=[0.05,0.1]"]


@pytest.mark.parametrize(
    ("run", "key", "search"),
    [
        ("ema_images: 64", "ema_images", WIDTHS),
        (
            "ema_images: 64",
            "ema_images",
            [*WIDTHS[:2], "sample.ema_width=0.07", "select.guidance=[1,2]"],
        ),
        ("ema_width: 0.07", "ema_width", [*WIDTHS[:2], "select.guidance=[1,2]"]),
        (
            "ema_halflife_images: 0",
            "ema_halflife_images",
            ["train.ema_halflife_images=[64,0]", "select.guidance=[1,2]"],
        ),
        ("guide: w.safetensors", "guide", ["select.guidance=[1,2]"]),
    ],
)
def test_a_run_with_another_network_is_refused_at_once(
    run: str, key: str, search: list[str]
) -> None:
    runs = f"sample.runs=[{{}}, {{selected: true, {run}}}]"
    with pytest.raises(UserError, match=f"has another {key} than sample"):
        resolved("experiment=tiny", *search, runs)
    same = f"sample.runs=[{{{run}}}, {{selected: true, solver: heun}}]"
    resolved("experiment=tiny", *search, same)

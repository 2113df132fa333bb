"""The comparison of edm2 and unet: equal cost, tuned rates, kept trainings, and its scores."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.bench import quality, quality_chart, record
from pipeline.config.load import load_step

COSTS = {"forward_flops": {"unet": 100, "edm2": 104}, "cpu_s_per_step": {}}


def row(name: str, rate: float, seed: int, distance: float) -> quality.Row:
    """A training whose distances are 4, 2 and 1 times `distance`."""
    points = [
        {"images": images, "distance": distance * factor, "accuracy": 0.5}
        for images, factor in zip(quality.LENGTHS, (4, 2, 1), strict=True)
    ]
    return {"network": name, "rate": rate, "seed": seed, "loss": 0.1, "points": points}


def test_both_networks_cost_as_much_and_differ_in_network_and_optimiser_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "STEP_ROUNDS", 1)
    monkeypatch.setattr(quality, "TIMED", 1)
    costs = quality.cost(tmp_path)
    flops = costs["forward_flops"]
    assert abs(flops["edm2"] / flops["unet"] - 1) < quality.SAME
    assert all(value > 0 for value in costs["cpu_s_per_step"].values())
    configs = [load_step([*quality.EXPERIMENT, *n.words], ())[0] for n in quality.NETWORKS.values()]
    unet, edm2 = (config.train.model_dump() for config in configs)
    differing = {key for key, value in unet.items() if value != edm2[key]}
    assert differing == {"lr_schedule", "betas", "lr_decay_images"}
    assert (unet["times"], unet["weighting"]) == ("uniform", "velocity")
    assert unet["ema_halflife_images"] == (quality.TRAINED // 20,)
    assert unet["ema_rampup"] == 0.05  # the same half-life relative to each length


@given(st.floats(-6, 6))
def test_rates_are_added_while_the_best_lies_at_the_edge_and_the_best_gets_all_seeds(
    optimum: float,
) -> None:
    trained: list[tuple[float, int]] = []

    def train(name: str, rate: float, seed: int) -> quality.Row:
        trained.append((rate, seed))
        return row(name, rate, seed, 1 + (np.log2(rate / 4e-3) - optimum) ** 2)

    rows = quality.rows_of("unet", train)  # type: ignore[arg-type]
    first = {rate for rate, seed in trained if seed == quality.SEEDS[0]}
    assert len(set(trained)) == len(trained) and 3 <= len(first) <= 3 + quality.FURTHER
    best = quality.best_rows(rows, "unet")
    assert [one["seed"] for one in best] == list(quality.SEEDS)
    assert quality.final(best[0]) == min(map(quality.final, rows))
    at_edge = best[0]["rate"] in (min(first), max(first))
    assert at_edge == (len(first) == 3 + quality.FURTHER and abs(optimum) > 3.5) or (
        abs(abs(optimum) - 3.5) < 1e-6
    )


def test_the_ratio_at_full_length_is_the_first_bar() -> None:
    rows = [row("unet", 4e-3, seed, 100 + seed) for seed in quality.SEEDS]
    rows += [row("edm2", 0.02, seed, 2 * (100 + seed)) for seed in quality.SEEDS]
    rows.append(row("edm2", 0.04, 0, 900))
    result = quality.result_of(rows, COSTS)
    first, *_, last = result["bars"]
    assert first["value"] == pytest.approx(2) and not first["holds"]
    assert f"{quality.TRAINED:,}" in first["what"]
    assert last["value"] == pytest.approx(0.04) and last["holds"]
    assert result["ratio"] == {"unet": 1, "edm2": 2} and result["trainings"] == rows
    assert [p["distance"] for p in result["curves"]["edm2"]] == [808, 404, 202]
    assert result["notes"][1].startswith("edm2 at its best rate 0.02: class accuracy 50% at 5,120")


def extractor() -> SimpleNamespace:
    """Features of images: some of their pixels."""

    def features(images: np.ndarray) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(images[:, :2, :2].reshape(len(images), -1)).float(), None

    return SimpleNamespace(features=features, width=12, device=torch.device("cpu"))


def test_real_images_are_near_and_show_their_class() -> None:
    labels = np.arange(120) % 3
    noise = np.random.default_rng(0).integers(0, 40, (120, 4, 4, 3))
    images = (noise + 80 * labels[:, None, None, None]).astype(np.uint8)
    pack = SimpleNamespace(images=images, labels=labels)
    real = quality.Real(extractor(), pack, 3)  # type: ignore[arg-type]
    same, wrong = real.score(images, labels), real.score(255 - images, labels)
    assert same["distance"] == pytest.approx(0, abs=1e-6) and same["accuracy"] == 1
    assert wrong["distance"] > 100 and wrong["accuracy"] < 0.5


def test_a_training_is_scored_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []

    def step(name: str, *words: str) -> None:
        ran.append((name, *words))
        (tmp_path / words[-1].removeprefix(f"out={tmp_path}/")).mkdir()

    curve = [SimpleNamespace(loss=0.5), SimpleNamespace(loss=0.25)]
    monkeypatch.setattr(quality, "step", step)
    monkeypatch.setattr(quality, "read_curve", lambda _: curve)
    points = row("unet", 4e-3, 1, 7)["points"]
    monkeypatch.setattr(quality.Training, "points", lambda *_: points)
    train = quality.Training(tmp_path, None, None)  # type: ignore[arg-type]
    first, second = train("unet", 4e-3, 1), train("unet", 4e-3, 1)
    assert first == second == row("unet", 4e-3, 1, 7) | {"loss": 0.25}
    ((name, *words),) = ran
    assert name == "train" and {"train.lr=0.004", "train.seed=1"} <= set(words)
    others = [train("unet", 2e-3, 1), train("unet", 4e-3, 2), train("edm2", 4e-3, 1)]
    assert len(ran) == 4 and len({str(other) for other in [first, *others]}) == 4
    assert len([*tmp_path.iterdir()]) == 4  # the rows alone


def test_the_curves_of_a_record_are_drawn(tmp_path: Path) -> None:
    rows = [
        row(name, 0.01, seed, 100 + seed) for name in quality.NETWORKS for seed in quality.SEEDS
    ]
    file = record.write("quality", quality.result_of(rows, COSTS), tmp_path)
    quality_chart.main(file, tmp_path / "curves.png")
    width, height = Image.open(tmp_path / "curves.png").size
    assert width > 2 * height > 800

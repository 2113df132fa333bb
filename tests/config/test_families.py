"""Families of networks: which keys each takes, from whatever layer; and the recipes of EDM2."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.stages import STAGE_KEYS, stage_keys
from pipeline.training.learning_rate import learning_rate
from pipeline.workflow.doors import read_values
from tests.conftest import resolved

CIFAR_LIKE = "experiments.mine={like: cifar10, model: {kind: edm2, head_channels: 64}}"


def test_another_family_takes_the_keys_below_that_it_has() -> None:
    unet, edm2 = resolved("experiment=tiny").model, resolved("model.kind=edm2", "experiment=tiny")
    shared = ("channels", "channel_mult", "blocks", "attention_at", "head_channels", "dropout")
    assert all(getattr(edm2.model, key) == getattr(unet, key) for key in shared)
    mine = resolved("experiment=mine", CIFAR_LIKE).model  # cifar10 gives `heads`, which edm2 lacks
    assert (mine.kind, mine.channels, mine.head_channels) == ("edm2", 128, 64)
    back = resolved("experiment=edm2_xs", "model.kind=unet").model
    assert (back.kind, back.channels, back.time_scale) == ("unet", 128, 1)


def test_a_file_of_its_own_names_another_family(tmp_path: Path) -> None:
    """Snakemake's --configfile, over config.yaml."""
    (tmp_path / "more.yaml").write_text("model: {kind: edm2, sigma_data: 0.4}\n")
    files = [load.DEFAULT_FILE, tmp_path / "more.yaml"]
    model = load.resolve(*read_values(files, ["experiment=tiny"]), {}).model
    assert (model.kind, model.channels, model.sigma_data) == ("edm2", 32, 0.4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.heads=3"], "unknown key model.heads of model.kind=edm2; did you mean model."),
        (["model.sigma_dta=1"], "unknown key model.sigma_dta; did you mean model.sigma_data?"),
        (["model.head_channels=null"], "model.head_channels=None is not valid: expected a valid"),
        (["model.head_channels=100"], "model.head_channels=100 does not divide the 576 channels"),
        (["data.resolution=20"], "data.resolution=20 cannot be halved 3 times"),
        (["model.kind=edm3"], "model.kind='edm3' is not valid: use one of unet, edm2, discrete_"),
        (["model.kind=unet", "model.sigma_data=1"], "model.sigma_data of model.kind=unet"),
        (["train.weighting=velocty"], "is not valid: use one of velocity, denoising"),
    ],
)
def test_keys_of_another_family_and_bad_values_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        resolved("experiment=edm2_s", *words)
    assert sentence in str(error.value)


@pytest.mark.parametrize("word", ["experiment=edm2_s", "experiment=flow_edm2_s"])
def test_a_stage_gets_its_keys_back_from_its_json(word: str) -> None:
    config = resolved(word, "data.source=train")
    for stage in STAGE_KEYS:
        wanted = stage_keys(config, stage)
        again, _ = load.load_step([f"config={json.dumps(wanted)}"], ())
        assert stage_keys(again, stage) == wanted


def test_keys_that_a_stage_leaves_out_are_not_those_of_the_experiment(tmp_path: Path) -> None:
    """Without `kind` it is a unet, without `weighting` its loss is that of velocities."""
    keys = stage_keys(resolved("experiment=tiny"), "train")
    assert "kind" not in keys["model"] and "weighting" not in keys["train"]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    words = [f"config={tmp_path}/config.json", "experiment=edm2_s"]
    config, _ = load.load_step(words, ())
    assert config.model.kind == "unet" and stage_keys(config, "train") == keys
    partly = {"train": {"lr": 0.5}, "model": {"channels": 64}}
    (tmp_path / "config.json").write_text(json.dumps(partly))
    config, _ = load.load_step(words, ())
    assert (config.model.kind, config.train.weighting) == ("edm2", "denoising")
    assert (config.model.channels, config.train.lr) == (64, 0.5)


# --- EDM2 at 64 px: the table of Karras et al. 2024 ----------------------------------------------

TABLE: dict[str, tuple[int, float, float, int]] = {  # width, rate, dropout, Mi images
    "edm2_xs": (128, 0.0120, 0.0, 1024),
    "edm2_s": (192, 0.0100, 0.0, 1024),
    "edm2_m": (256, 0.0090, 0.1, 2048),
    "edm2_l": (320, 0.0080, 0.1, 1024),
    "edm2_xl": (384, 0.0070, 0.1, 640),
}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_key_for_key(name: str) -> None:
    config = resolved(f"experiment={name}")
    model, train = config.model, config.train
    assert (model.channels, train.lr, model.dropout, train.images / 2**20) == TABLE[name]
    assert (config.data.resolution, config.data.recipe) == (64, "adm")
    assert {
        "channel_mult": (1, 2, 3, 4), "blocks": 3, "attention_at": (4, 8), "head_channels": 64,
        "class_conditional": True, "sigma_data": 0.5, "uncertainty_channels": 128,
    }.items() <= model.model_dump().items()  # fmt: skip
    assert {
        "batch": 2048, "times": "edm_skew", "time_mean": -0.8, "time_std": 1.6,
        "weighting": "denoising", "betas": (0.9, 0.99), "weight_decay": 0.0,
        "lr_schedule": "inverse_sqrt", "lr_decay_images": 35000 * 2048,
        "warmup_images": 10_000_000,
    }.items() <= train.model_dump().items()  # fmt: skip


@pytest.mark.parametrize("images", [0, 5_000_000, 20_000_000, 71_680_000, 286_720_000, 2**30])
def test_the_rate_is_the_published_one(images: int) -> None:
    """lr = ref / sqrt(max(n / (decay batch), 1)), with a linear warm-up over 10 Mimg."""
    train = resolved("experiment=edm2_s").train
    published = 0.01 / max(images / (35_000 * 2048), 1) ** 0.5 * min(images / 10e6, 1)
    one_step = 0.01 * 2048 / 10e6  # by which our warm-up is ahead
    assert learning_rate(train, images) == pytest.approx(published, abs=1.001 * one_step)


def test_the_flow_differs_in_times_and_weighting_alone() -> None:
    edm2, flow = (resolved(f"experiment={name}edm2_s").model_dump() for name in ("", "flow_"))
    changed: dict[str, Any] = {"times": "uniform", "time_mean": None, "time_std": None}
    assert flow["train"] == edm2["train"] | changed | {"weighting": "velocity"}
    assert flow | {"experiment": "edm2_s", "train": edm2["train"]} == edm2

"""Averages of several half-lives: the key, the averages, the files, and which one is sampled."""

from pathlib import Path

import pytest
import torch

from pipeline import sample
from pipeline.base.errors import UserError
from pipeline.config.load import DEFAULT_FILE, load_yaml
from pipeline.config.paths import sampler_name, weights_file, weights_files
from pipeline.config.stages import stage_keys
from pipeline.data.pack import DataAbout
from pipeline.networks.unet import UNet
from pipeline.training.ema import EMA
from pipeline.training.weights_file import WeightsAbout, save_weights
from pipeline.workflow.experiment import Experiment
from tests.conftest import resolved

TWO = "train.ema_halflife_images=[64,500000]"


def test_one_number_is_a_list_of_one() -> None:
    assert resolved("train.ema_halflife_images=5").train.ema_halflife_images == (5,)
    assert resolved("train.ema_halflife_images=[5,0]").train.ema_halflife_images == (5, 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[]", "at least 1 item"),
        ("[5,5]", "expected no number twice"),
        ("[5,-1]", "=-1 is not valid: expected greater than or equal to 0"),
        ("long", "='long' is not valid: expected a valid integer"),
        ("true", "expected no true or false"),
        ("null", "expected a list"),
    ],
)
def test_bad_halflives(value: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(f"train.ema_halflife_images={value}")
    assert str(caught.value).startswith("train.ema_halflife_images=")
    assert reason in str(caught.value)


def test_halflife_zero_is_the_weights_themselves() -> None:
    net = torch.nn.Linear(3, 3)
    ema = EMA(net, 0, rampup=0.05)
    with torch.no_grad():
        net.weight.normal_()
    ema.update(net.parameters(), 64, 64)
    assert torch.equal(ema.net.weight, net.weight)


def test_the_average_is_that_of_torch() -> None:
    net = torch.nn.Linear(3, 3)
    ema = EMA(net, 640, rampup=0.0)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5 ** (64 / 640))
    theirs = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=decay)
    theirs.update_parameters(net)  # the first is a copy
    for step in range(20):
        with torch.no_grad():
            net.weight.normal_()
        ema.update(net.parameters(), (step + 1) * 64, 64)
        theirs.update_parameters(net)
    torch.testing.assert_close(ema.net.weight, theirs.module.weight)


@pytest.mark.parametrize("batch", [64, 256])
def test_a_long_average_goes_all_of_its_way(batch: int) -> None:
    """Its steps are far below the rounding of a float32 weight, which would stand still."""
    steps, halflife = 1000, 14_000_000
    net = torch.nn.Linear(32, 32)
    ema = EMA(net, halflife, rampup=0.0)
    start = ema.net.weight.double()
    with torch.no_grad():
        net.weight *= 1.005
    for step in range(steps):
        ema.update(net.parameters(), (step + 1) * batch, batch)
    assert ema.remainder is not None
    gone = ema.net.weight.double() + ema.remainder.weight.double() - start
    due = (1 - 0.5 ** (steps * batch / halflife)) * (net.weight.double() - start)
    assert (gone / due - 1).abs().max() < 1e-3
    assert torch.equal(ema.net.weight, (gone + start).float())


def test_only_an_average_with_a_halflife_has_a_remainder() -> None:
    net = torch.nn.Linear(3, 3)
    assert [len(EMA(net, halflife, 0.05).nets) for halflife in (0, 64)] == [1, 2]
    assert resolved("train.ema_halflife_images=[0,5,7]").train.num_copies == 3 + 3 + 2


def test_names_of_files_and_folders() -> None:
    config = resolved("experiment=tiny", TWO)
    assert weights_files(config.train) == {
        64: "weights.safetensors",
        500000: "weights-ema500000.safetensors",
    }
    assert weights_file(config).name == "weights.safetensors"
    assert sampler_name(config.sample) == "euler-4-g2"
    chosen = resolved("experiment=tiny", TWO, "sample.ema_halflife_images=500000")
    assert weights_file(chosen).name == "weights-ema500000.safetensors"
    assert sampler_name(chosen.sample) == "euler-4-g2-ema500000"
    words = ["sample.solver=heun", "sample.steps=18", "sample.guidance=1"]
    plain = resolved(*words, "sample.ema_halflife_images=null").sample
    both = plain.model_copy(update={"ema_halflife_images": 500000})
    assert (sampler_name(plain), sampler_name(both)) == ("heun-18", "heun-18-ema500000")


def test_an_average_that_nobody_made() -> None:
    config = resolved("experiment=tiny", TWO, "sample.ema_halflife_images=65")
    with pytest.raises(UserError, match=r"=65 is not among .*=\[64, 500000\]: use one of them"):
        weights_file(config)


def test_the_workflow_makes_all_and_samples_the_chosen() -> None:
    words = f"{TWO} sample.ema_halflife_images=500000"
    experiment = Experiment(load_yaml(DEFAULT_FILE), {"experiment": "tiny", "set": words})
    folder = "results/tiny/shapes_tiny_8-box/train/"
    names = ["weights.safetensors", "weights-ema500000.safetensors"]
    assert experiment.weights == [folder + name for name in names]
    assert list(experiment.sampled_weights.values()) == [folder + names[1]]


def test_only_sampling_reads_the_choice() -> None:
    plain, chosen = resolved(), resolved("sample.ema_halflife_images=14000000")
    for stage in ("train", "evaluate", "report", "reference", "downsample"):
        assert stage_keys(plain, stage) == stage_keys(chosen, stage)
    assert stage_keys(plain, "sample") != stage_keys(chosen, "sample")


def test_sampling_checks_what_the_weights_say(tmp_path: Path) -> None:
    config = resolved("experiment=tiny", TWO)
    path = tmp_path / "weights.safetensors"
    names = [f"c{k}" for k in range(10)]
    data = DataAbout(source="shapes", resolution=8, recipe="box", classes=names, sha256=None)
    about = WeightsAbout(
        config=stage_keys(config, "train"), record=data.to_json(), ema_halflife_images=64
    )
    save_weights(path, UNet(config.model, 10).state_dict(), about)
    words = ["experiment=tiny", f"weights={path}"]
    for choice in ("null", "64"):
        sample.prepare([*words, f"sample.ema_halflife_images={choice}"])
    with pytest.raises(UserError, match="half-life of 64 images, not .*=500000"):
        sample.prepare([*words, "sample.ema_halflife_images=500000"])

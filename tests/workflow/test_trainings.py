"""The networks that guide, as experiments: what is trained for them, where, and what is refused."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline import plan
from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.load import load_step
from pipeline.steps import STEPS
from pipeline.workflow.experiment import Experiment

BASE = load.load_yaml(load.DEFAULT_FILE)
WEAK = {
    "like": "tiny",
    "model": {"channels": 64},
    "train": {"ema_halflife_images": [64, 0]},
    "runtime": {"sample_batch": 7},
}


def guided(*guides: dict[str, Any] | str | None, **given: Any) -> Experiment:
    """The tiny experiment with a sampler for each guide; `weak` is an experiment, too."""
    runs = [{"guide": guide, "guidance": 2 + k} for k, guide in enumerate(guides)]
    experiments = {"weak": WEAK | given.pop("weak", {})}
    given = {"experiment": "tiny", "experiments": experiments, "sample": {"runs": runs}} | given
    return Experiment(BASE, given)


def test_an_experiment_that_guides_is_trained_by_a_rule_of_its_own() -> None:
    found = guided({"experiment": "weak"}, train={"batch": 16}, data={"resolution": 16})
    assert list(found.trainings) == ["train", "guide"]
    guide = found.trainings["guide"]
    assert guide.folder == "results/weak/shapes_tiny_16-box/train"
    (file,) = next(iter(found.guides.values()))
    assert file == f"{guide.folder}/weights.safetensors" and file in guide.weights
    # Its own model and training, the data and runtime of what it guides
    keys, own = json.loads(guide.keys), found.trainings["train"].config
    assert (keys["model"]["channels"], keys["data"]["resolution"]) == (64, 16)
    assert keys["train"]["batch"] != own.train.batch == 16
    assert guide.config.runtime == own.runtime and guide.config.runtime.sample_batch != 7
    (sampler,) = found.samplers
    assert sampler.split("by-")[1].startswith("weak-")
    assert f"guide={file}" in found.sample_settings(sampler)


def test_its_length_and_average_are_told() -> None:
    named = {"experiment": "weak"}
    images = BASE["experiments"]["tiny"]["train"]["images"]
    found = guided(
        *(named | more for more in ({"images": 96}, {"ema_halflife_images": 0}, {"images": images}))
    )
    data = "shapes_tiny_8-box/train"
    assert list(found.guides.values()) == [
        [f"results/weak-96/{data}/weights.safetensors"],
        [f"results/weak/{data}/weights-ema0.safetensors"],
        [f"results/weak/{data}/weights.safetensors"],
    ]
    power = {"train": {"ema": "power"}}
    (file,) = next(iter(guided(named | {"ema_width": 0.11}, weak=power).guides.values()))
    assert file == "results/weak/shapes_tiny_8-box/average/ema0.11-640.safetensors"
    # One rule for each training, and one name for each sampler
    folders = [training.folder for training in found.trainings.values()]
    assert folders == [f"results/{name}/{data}" for name in ("tiny", "weak-96", "weak")]
    assert list(found.trainings) == ["train", "guide", "guide_2"]
    assert found.trainings["guide"].config.train.images == 96


def test_an_experiment_may_guide_itself_by_another_average() -> None:
    itself = {"experiment": "tiny", "ema_halflife_images": 0}
    found = guided(itself, train={"ema_halflife_images": [64, 0], "lr": 1e-3})
    assert list(found.trainings) == ["train"]
    assert next(iter(found.guides.values())) == [found.weights[1]]


@pytest.mark.parametrize(
    ("guide", "weak", "sentence"),
    [
        ({"experiment": "week"}, {}, "sample.guide: no experiment 'week' .*did you mean weak"),
        (
            {"experiment": "weak", "ema_halflife_images": 5},
            {},
            "sample.guide, experiment weak: .*=5",
        ),
        ({"experiment": "weak"}, {"model": {"class_conditional": False}}, "know the classes"),
        ({"experiment": "weak"}, {"model": {"head_channels": 7}}, "sample.guide: model.head"),
        (
            {"experiment": "weak", "image": 5},
            {},
            r"runs\[0\]: unknown key guide.image; did you mean guide.images",
        ),
        ({"images": 5}, {}, r"runs\[0\]: guide=.*expected a file of weights, {experiment: NAME"),
    ],
)
def test_what_cannot_guide_is_refused(guide: dict, weak: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        guided(guide, weak=weak)


def test_edm2_smoke_is_the_whole_recipe() -> None:
    found = Experiment(BASE, {"experiment": "edm2_smoke"})
    assert list(found.trainings) == ["train", "guide"]
    plain, guided, selected = found.samplers
    assert selected.endswith("-select") and found.guides[selected] == found.guides[guided]
    assert found.guides[plain] == [] and "by-edm2_smoke_guide" in guided
    run = "results/edm2_smoke_guide-8000/shapes_16-box"
    assert found.guides[guided] == [f"{run}/average/ema0.1-8000.safetensors"]
    assert found.sampled_weights[plain] == found.sampled_weights[guided]
    assert found.sampled_weights[plain].endswith("/average/ema0.075-32000.safetensors")


def test_old_weights_do_not_pass_for_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    two = {"train": {"ema_halflife_images": [64, 500]}}
    first, second = (Path(file) for file in guided(None, **two).weights)
    # Nothing, or nothing that is known of it
    assert guided(None, **two).outgrown == []
    first.parent.mkdir(parents=True)
    first.touch()
    assert guided(None, **two).outgrown == []
    # Made with other keys, with one average; and a file removed that these keys have made
    (first.parent / "config.json").write_text(guided(None).trainings["train"].keys)
    assert guided(None, **two).outgrown == [str(second)] and guided(None).outgrown == []
    (first.parent / "config.json").write_text(guided(None, **two).trainings["train"].keys)
    assert guided(None, **two).outgrown == []


def test_an_old_choice_does_not_pass_for_one_that_searches_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    power = {"train": {"ema": "power", "ema_snapshot_images": 64}, "sample": {"ema_width": 0.1}}

    def searching(**axes: object) -> Experiment:
        return Experiment(BASE, {"experiment": "tiny", **power, "select": {"num": 20} | axes})

    before, wider = searching(guidance=[1, 3]), searching(guidance=[1, 3], ema_widths=[0.05, 0.1])
    assert wider.outgrown == []
    choice = Path(before.selection.choice)
    choice.parent.mkdir(parents=True)
    choice.touch()
    (choice.parent / "config.json").write_text(before.keys("select"))
    assert searching(guidance=[1, 3]).outgrown == []
    assert searching(guidance=[1, 3], ema_widths=[0.05, 0.1]).outgrown == wider.selection.weights


def test_an_average_reads_no_key_of_another_experiment() -> None:
    """Nor the variable, which may be one that the default experiment cannot have."""
    power = {"train": {"ema": "power"}, "data": {"resolution": 12}}
    settings = Experiment(BASE, {"experiment": "tiny", **power}).average_settings
    words = [*shlex.split(settings), "sample.ema_width=0.05", "sample.ema_images=640"]
    config, _ = load_step(words, STEPS["average"].words, {"IMAGENET_RES": "999"})
    assert (config.sample.ema_width, config.sample.ema_images) == (0.05, 640)
    assert config.data.pack_dir == "results/packs"


def test_no_guide_is_trained_if_nothing_is_guided() -> None:
    alone = {"guide": {"experiment": "weak"}, "guidance": 1}
    assert list(guided(sample=alone).trainings) == ["train"]


def test_the_plan_tells_what_the_guide_costs(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text = plan.describe(guided({"experiment": "weak", "images": 96}), [])
    (line,) = [line for line in text.splitlines() if line.startswith("  guide")]
    assert "weak-96: " in line and "96 images" in line and "results/weak-96/" in line

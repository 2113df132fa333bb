"""What the Snakefile asks: keys, files and threads of every set of samples."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.resources import Resources

from pipeline.base.errors import UserError
from pipeline.base.files import write_json
from pipeline.config import load
from pipeline.data.pack import read_record
from pipeline.workflow import doors, experiment, hooks
from tests.conftest import write_pack

BASE = load.load_yaml(load.DEFAULT_FILE)
RUNS = [{"solver": "heun", "steps": 9}, {"guide": "weak.safetensors", "seeds": [4, 5]}]


def resolved_experiment(**given: Any) -> experiment.Experiment:
    return experiment.Experiment(BASE, {"experiment": "tiny"} | given)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in that holds the guide of RUNS."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weak.safetensors").touch()
    return tmp_path


def test_every_sampler_and_seed_is_a_set_of_its_own(here: Path) -> None:
    found = resolved_experiment(sample={"runs": RUNS, "seeds": [0, 1]})
    heun, guided = found.samplers
    assert [file.split("/sample/")[1].removesuffix("/images.npy") for file in found.samples] == [
        f"{heun}/seed0", f"{heun}/seed1", f"{guided}/seed4", f"{guided}/seed5"
    ]  # fmt: skip
    assert found.metrics[-1] == f"{found.run}/metrics/{guided}-seed5.json"
    assert found.guides == {heun: [], guided: ["weak.safetensors"]}
    keys = json.loads(found.sampler_keys("sample", heun))["sample"]
    assert (keys["solver"], keys["steps"], keys["guide"]) == ("heun", 9, None)
    assert not {"runs", "seeds"} & set(keys)


def test_a_guide_must_be_a_file_where_it_is_used(tmp_path: Path) -> None:
    missing = {"guide": str(tmp_path / "weak.safetensors")}
    with pytest.raises(UserError, match=r"weak.safetensors is not a file: give a file of weights"):
        resolved_experiment(sample=missing)
    assert list(resolved_experiment(sample={**missing, "guidance": 1}).guides.values()) == [[]]
    own = f"{resolved_experiment().run}/train/weights-ema0.safetensors"  # the training makes it
    train = {"ema_halflife_images": [64, 0]}
    assert list(resolved_experiment(train=train, sample={"guide": own}).guides.values()) == [[own]]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "class_conditional", False), ("train", "label_dropout", 0)],
)
def test_a_network_that_cannot_guide_itself_is_refused_before_it_is_trained(
    section: str, key: str, value: float
) -> None:
    given: dict[str, Any] = {section: {key: value}}
    with pytest.raises(UserError, match=r"sample.guidance=2 is not possible, since the network"):
        resolved_experiment(**given)
    resolved_experiment(**given, sample={"guidance": 1})


def test_a_solver_of_other_networks_is_refused_before_the_training() -> None:
    with pytest.raises(UserError, match="solver=jump is not possible, since the network"):
        resolved_experiment(sample={"solver": "jump"})
    tokens: dict[str, Any] = {"workload": "discrete_flow"}
    tokens["model"] = {"kind": "discrete_unet", "channels": 96}
    with pytest.raises(UserError, match="give sample.solver=jump"):
        resolved_experiment(**tokens)
    found = resolved_experiment(**tokens, sample={"solver": "jump"})
    assert '"workload": "discrete_flow"' in found.keys("train")


def test_chosen_classes_that_are_not_there_stop_before_the_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {"model": {"class_conditional": False}}
    sample = {"classes": [1, 10], "guidance": 1}
    with pytest.raises(UserError, match="the network knows no classes"):
        resolved_experiment(**bare, sample=sample)
    found = resolved_experiment(sample=sample)
    hooks.check_chosen([job("train", 0)], found.config)  # no record says the classes
    write_pack(here, num=20, size=8, classes=10)
    Path(found.record).parent.mkdir(parents=True)
    read_record(here).write(Path(found.record))
    hooks.check_chosen([job("train", 0), job("downsample", 0)], found.config)
    hooks.check_chosen([job("report", 0)], found.config)
    with pytest.raises(SystemExit):
        hooks.check_chosen([job("train", 0)], found.config)
    assert "no class has the number 10; the classes are 0 to 9" in capsys.readouterr().err


def put_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"labels": null}')


UNLABELLED = {
    "flat": ["train/1.png", "train/2.png"],
    "edm": ["train/dataset.json", "train/0/1.png"],
}


@pytest.mark.parametrize("layout", UNLABELLED)
def test_images_without_classes_stop_a_training_that_learns_classes(
    layout: str, here: Path
) -> None:
    """Before the first job; a pack is made all the same, and a network without classes trained."""
    put_images(here, *UNLABELLED[layout])
    places: dict[str, Any] = {"dir": str(here), "pack_dir": str(here), "source": "train"}
    found = resolved_experiment(data=places, sample={"guidance": 1}).trainings
    with pytest.raises(UserError, match=r"/train has no classes, .*model.class_conditional=false"):
        hooks.check_starts(found, ["downsample", "train"])
    hooks.check_starts(found, ["downsample"])
    bare = {"model": {"class_conditional": False}, "sample": {"guidance": 1}}
    bare_trainings = resolved_experiment(data=places, **bare).trainings
    hooks.check_starts(bare_trainings, ["downsample", "train"])
    put_images(here, "train/a/1.png", "train/b/2.png")
    (here / "train/dataset.json").unlink(missing_ok=True)
    hooks.check_starts(found, ["downsample", "train"])


def test_a_pack_without_classes_stops_a_training_that_learns_classes(here: Path) -> None:
    found = resolved_experiment(sample={"guidance": 1})
    record = write_pack(here, num=20, size=8, classes=1).to_json() | {"classes": ["no_class"]}
    write_json(Path(found.record), record)
    with pytest.raises(UserError, match=r"shapes_tiny_8-box.json has no classes, but model.class"):
        hooks.check_starts(found.trainings, ["train"])
    hooks.check_starts(found.trainings, ["report"])


def test_another_run_changes_no_key_of_what_is_there(here: Path) -> None:
    one = resolved_experiment(sample={"runs": RUNS[:1]})
    two = resolved_experiment(sample={"runs": RUNS})
    (name,) = one.samplers
    assert one.sampler_keys("sample", name) == two.sampler_keys("sample", name)
    for stage in ("downsample", "train", "extractor", "reference", "evaluate", "report"):
        assert one.keys(stage) == two.keys(stage)


def test_a_run_of_the_plain_keys_is_the_plain_sampler() -> None:
    assert resolved_experiment(sample={"runs": [{}]}).samples == resolved_experiment().samples


def test_each_sampler_names_its_average() -> None:
    averages = {"ema_halflife_images": [64, 0]}
    runs = [{"ema_halflife_images": 64}, {"ema_halflife_images": 0}]
    found = resolved_experiment(train=averages, sample={"runs": runs})
    assert [path.rpartition("/")[2] for path in found.sampled_weights.values()] == [
        "weights.safetensors", "weights-ema0.safetensors"
    ]  # fmt: skip
    with pytest.raises(UserError, match="is not among train.ema_halflife_images"):
        resolved_experiment(train=averages, sample={"runs": [{"ema_halflife_images": 3}]})


@given(st.text("ab '\"\\:={}[],$#;", min_size=1))
def test_a_word_of_set_brings_every_value_back(text: str) -> None:
    """As make and the report pass it on; Snakemake's own reading strips quotes from both ends."""
    word = f"data.dir={json.dumps(text)}"
    quoted = word.replace("'", "''")
    _, values = doors.read_values([], ["experiment=tiny", f"set=['{quoted}']"])
    assert values == {"experiment": "tiny", "set": [word]}
    assert load.layered(BASE, values)["data"]["dir"] == text


def machine(gpus: int | None, cores: int | None) -> Any:
    """A workflow of Snakemake, with nothing but its caps."""
    caps = Resources.from_mapping({"gpu": gpus, "_cores": cores})
    return SimpleNamespace(global_resources=caps)


@pytest.mark.parametrize(
    ("gpus", "cores", "wanted", "expected"),
    [
        (8, 64, 1, 4),
        (8, 8, 1, 1),
        (4, 8, 1, 2),
        (8, 8, 8, 8),
        (8, 64, 8, 32),
        (2, 2, 1, 1),
        (2, 64, 8, 8),
    ],
)
def test_cores_keep_no_set_of_samples_waiting_for_another(
    gpus: int, cores: int, wanted: int, expected: int
) -> None:
    seeds = {"seeds": list(range(12))}
    found = resolved_experiment(sample=seeds, runtime={"gpus": {"sample": wanted}})
    threads = found.threads("sample", machine(gpus, cores))
    assert threads == expected
    assert threads * max(1, gpus // wanted) <= cores


def test_a_job_alone_takes_four_cores_a_gpu() -> None:
    found = resolved_experiment(runtime={"gpus": {"evaluate": 1, "sample": 8}})
    assert found.threads("evaluate", machine(2, 2)) == 2  # one set of samples: nothing beside it
    assert found.threads("sample", machine(None, None)) == 32  # as on a cluster


def job(rule: str, gpu: int) -> Any:
    return SimpleNamespace(rule=SimpleNamespace(name=rule), resources={"gpu": gpu})


@pytest.mark.parametrize("rule", ["train", "sample", "reference", "evaluate"])
def test_too_few_devices_stop_every_rule_with_ranks(
    rule: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hooks.gpus, "visible", lambda: ["0", "1"])
    tiny = resolved_experiment()
    hooks.check_devices([job(rule, 2), job("report", 8)], tiny)
    with pytest.raises(SystemExit):
        hooks.check_devices([job(rule, 4)], tiny)
    assert f"rule {rule}: 4 GPUs are asked for but 2 visible" in capsys.readouterr().err

"""Every key, its checks, and what reads it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.stages import (
    CONCEPT_KEYS,
    PLACES,
    STAGE_KEYS,
    settings_words,
    stage_keys,
    write_config,
)
from pipeline.config.words import lookup, merge
from tests.conftest import ROOT, resolved

BASE = load.load_yaml(load.DEFAULT_FILE)


@pytest.mark.parametrize("name", BASE["experiments"])
def test_every_experiment_resolves(name: str) -> None:
    assert resolved(f"experiment={name}").experiment == name


def test_every_key_has_a_comment() -> None:
    lines = load.DEFAULT_FILE.read_text().split("\nexperiments:")[0].splitlines()
    keys = [x for x in lines if re.match(r"  (  )?\w+: ", x)]  # keys with a value, not sections
    assert len(keys) > 50
    assert [x for x in keys if "#" not in x] == []


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.lrr=3", "unknown key train.lrr; did you mean train.lr?"),
        ("trian.lr=3", "unknown key trian; did you mean train?"),
        ("lr=3", "unknown key lr; did you mean train.lr?"),
        ("train.lr=abc", "train.lr='abc' is not valid: expected a valid number"),
        ("train.lr=.inf", "train.lr=inf is not valid"),
        ("train.batch=3.5", "train.batch=3.5 is not valid"),
        ("train.batch=0", "train.batch=0 is not valid"),
        ("train=3", "train=3 is not valid"),
        ("data.recipe=bxo", "data.recipe='bxo' is not valid: use one of box"),
        ("model.kind=unnet", "model.kind='unnet' is not valid: use one of unet"),
        ("model.chanels=3", "unknown key model.chanels; did you mean model.channels?"),
        ("model.channels=3", "model.channels=3 is not valid: expected a multiple of 32"),
        ("model=3", "model=3 is not valid: expected"),
        ("runtime.compile=maybe", "use auto or true|false"),
        ("model.head_channels=x", "use a whole number or null"),
        ("data.resolution=20", "data.resolution=20 cannot be halved 3 times"),
        ("experiment=smok", "did you mean smoke?"),
        ("experiments=5", "experiments=5 is not a mapping"),
        ("experiments.tiny=3", "is not a mapping"),
        ("experiments.imagenet.like=imagenet", "is `like` itself"),
        ("train.batch=true", "train.batch=True is not valid: expected no true or false"),
        ("train.betas=[0.9,1]", "less than 1"),
        ("train.seed=99999999999999999999", "train.seed="),
        ("model.head_channels=100", "model.head_channels=100 does not divide the"),
        ("evaluate.kid_subset_size=1", "greater than or equal to 2"),
        ("train.lr", "is not of the form key=value"),
        ("sample.grid=fine", "sample.grid='fine' is not valid: use uniform|edm|sigma or a list"),
        (
            "sample.grid=[0.5,0.2,1]",
            "expected uniform, edm, sigma, or increasing times that end at 1",
        ),
        ("sample.grid=[0.5,2]", "sample.grid=[0.5, 2] is not valid"),
        ("sample.seeds=[1,0,1]", "sample.seeds=[1, 0, 1] is not valid: expected no number twice"),
        ("sample.guidance_interval=[0.5,0.2]", "the smaller one first"),
        ("sample.guidance_interval=[1]", "guidance_interval=[1] is not valid: expected more"),
        ("sample.runs=heun", "sample.runs='heun' is not valid: expected a list"),
        ("out=", "out= is empty: give it a value or leave it out"),
        ("sample.runs=[heun]", "sample.runs='heun' is not valid: expected a valid dictionary"),
        ("sample.runs=[{},{stpes: 9}]", "sample.runs[1]: unknown key stpes; did you mean steps?"),
        (
            "sample.runs=[{settings: {}}]",
            "sample.runs[0]: unknown key settings (known: num, solver, ",
        ),
        ("sample.runs=[{steps: 0}]", "sample.runs[0]: steps=0 is not valid: expected greater"),
        ("sample.runs=[{solver: hoin}]", "sample.runs[0]: solver='hoin' is not valid: use one of"),
        ("sample.runs=[{runs: []}]", "sample.runs[0]: runs within a run are not known"),
        ("sample.runs=[{steps:9}]", "sample.runs[0]: unknown key steps:9; did you mean steps?"),
        ("sample.runs=[{},{}]", "sample.runs[0] and sample.runs[1] have one name"),
        ("train.lr=[1", "is not YAML"),
    ],
)
def test_bad_words_get_one_sentence(word: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load.load_step([word], ("out",))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_base_experiment_command_line() -> None:
    assert resolved("experiment=tiny").train.lr == 1e-3  # of small, which tiny is like
    assert resolved("experiment=tiny").train.batch == 32  # its own
    assert resolved("experiment=tiny", "train.batch=8").train.batch == 8
    over = {"experiment": "tiny", "set": "train.batch=4 ++sample.steps=3"}
    both = load.resolve(BASE, over, {})
    assert (both.train.batch, both.sample.steps) == (4, 3)


@pytest.mark.parametrize(
    "runs",
    [
        "[{solver: heun, steps: 9}, {steps: 3}]",
        '[{"solver":"heun","steps":9},{"steps":3}]',
        "[ {solver: 'heun',  steps: 9},   {steps: 3} ]",
    ],
)
def test_words_of_set_may_hold_spaces(runs: str) -> None:
    words = f" train.lr=2e-4 sample.runs={runs}   ++data.dir='/a b'  "
    found = load.resolve(BASE, {"experiment": "smoke", "set": words}, {})
    assert found == load.resolve(BASE, {"experiment": "smoke", "set": [words]}, {})
    assert (found.train.lr, found.data.dir) == (2e-4, "/a b")
    assert [(one.solver, one.steps) for one in found.sample.samplers] == [("heun", 9), ("euler", 3)]


def test_a_set_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="is not text: write it as a list of one text"):
        load.resolve(BASE, {"set": {"sample.runs=[{solver": "heun}]"}}, {})


@given(st.dictionaries(st.sampled_from(["steps", "num", "guidance"]), st.integers(1, 9)))
def test_a_run_changes_its_keys_and_no_other(run: dict[str, int]) -> None:
    plain = resolved("experiment=smoke").sample
    (one,) = resolved("experiment=smoke", f"sample.runs={[run]}").sample.samplers
    assert one == plain.model_copy(update=run)


def test_hydra_spellings_mean_the_same() -> None:
    for mark in ("", "+", "++"):
        assert resolved(f"{mark}train.lr=2e-4").train.lr == 2e-4


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        ([], {}, 64),
        ([], {"IMAGENET_RES": "32"}, 32),
        (["data.resolution=48"], {"IMAGENET_RES": "32"}, 48),
        (["data.resolution=auto"], {"IMAGENET_RES": "32"}, 32),
    ],
)
def test_resolution_command_line_then_variable_then_64(
    words: list[str], environment: dict[str, str], expected: int
) -> None:
    assert resolved(*words, environment=environment).data.resolution == expected


def test_bad_imagenet_res_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.resolution='big' is not valid"):
        resolved(environment={"IMAGENET_RES": "big"})


def test_hardware_and_places_are_in_no_stage() -> None:
    everything = {k for words in STAGE_KEYS.values() for k in words}
    assert not [k for k in everything if k.startswith(("runtime", "launch"))]
    assert not everything & set(PLACES)


def test_every_other_key_is_read_by_some_stage() -> None:
    # keys that are left out if they have the value which used to go without saying
    train = ["weighting=denoising", "ema=power", "ema_widths=[0.04,0.2]", "ema_snapshot_images=64"]
    train += ["ema_snapshot_precision=fp16", "mask_exponent=2", "token_loss=generalised_kl"]
    train = [f"train.{word}" for word in train]
    sample = ["sample.ema_width=0.07", "sample.ema_images=128"]
    sample += ["sample.temperature=0.9", "sample.categorical=float64", "sample.divergence_free=2"]
    sample += ["sample.selected=true", "select.guidance=[1,2]"]
    sample += ["sample.fit_images=9", "sample.fit_seed=9"]
    config = resolved("downsample.allow_ignored=1", *train, *sample)
    stages = [stage_keys(config, stage) for stage in STAGE_KEYS]
    for other in ("edm2_s", "cifar10_discrete"):  # other families
        stages.append(stage_keys(resolved(f"experiment={other}"), "train"))
    denoising = ["concept.denoising_steps=9", "concept.guidance=2", "concept.guidance_rescale=0.5"]
    denoising += ["concept.initial_noise=0.9", "concept.noise_seed=9"]
    pairs = ["concept.pairs=true", "concept.prompt_sentences_column=x"]
    pairs += ["concept.prompt_vectors_column=y"]
    of_documents = resolved("experiment=lcm_two_tower_smoke", *denoising, *pairs)
    stages += [stage_keys(of_documents, stage) for stage in CONCEPT_KEYS]
    for key in load.known_keys():
        section = key.partition(".")[0]
        named = key in (*PLACES, "sample.seeds", "sample.runs") or "." not in key
        named = named or key in ("concept.suffix", "concept.prompt_suffix")
        named = named or key in ("model.kind", "downsample.allow_ignored")  # see test_older_form.py
        named = named or key.startswith("sample.guide.")  # parts of sample.guide
        if named or section in ("runtime", "launch"):
            continue
        assert any(_has(stage, key) for stage in stages), key


def _has(tree: dict, key: str) -> bool:
    try:
        lookup(tree, key)
    except (KeyError, TypeError):
        return False
    return True


def test_a_stage_gets_its_keys_back_from_its_json() -> None:
    tiny = resolved("experiment=tiny", "train.lr=0.5")
    for stage in STAGE_KEYS:
        wanted = stage_keys(tiny, stage)
        words = [f"config={yaml.safe_dump(wanted, default_flow_style=True, width=10**9)}"]
        again, _ = load.load_step(words, ())
        assert stage_keys(again, stage) == wanted


def test_a_stage_asks_nothing_of_sections_that_it_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = load.DEFAULT_FILE.read_text()  # runs whose names differ over the base sampler alone
    runs = "runs: [{steps: 4}, {solver: heun, steps: 4}]"
    (tmp_path / "config.yaml").write_text(text.replace("runs: []", runs))
    monkeypatch.setattr(load, "DEFAULT_FILE", tmp_path / "config.yaml")
    tiny = resolved("experiment=tiny", "data.resolution=12")  # which the reference model cannot
    for one in tiny.sample.samplers:
        for stage in STAGE_KEYS:
            wanted = stage_keys(tiny.model_copy(update={"sample": one}), stage)
            again, _ = load.load_step([f"config={json.dumps(wanted)}"], ())
            assert stage_keys(again, stage) == wanted


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training of `tiny` with another learning rate, below the current one."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/tiny/shapes_tiny_8-box/train")
    write_config(folder, resolved("experiment=tiny", "train.lr=0.5"), "train")
    return folder


@pytest.mark.parametrize("named", [False, True])
def test_a_config_json_repeats_its_stage(run_folder: Path, named: bool) -> None:
    wanted = resolved("experiment=tiny", "train.lr=0.5")
    words = ["experiment=tiny"] if named else []
    file = run_folder / "config.json"
    again, _ = load.load_step([f"config={file}", *words], ("out",))
    assert again == wanted  # with the places and settings of the experiment
    changed, _ = load.load_step([f"config={file}", "train.lr=0.25", *words], ("out",))
    assert changed == resolved("experiment=tiny", "train.lr=0.25")


def test_a_config_json_of_an_experiment_that_is_not_in_config_yaml(
    run_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "results" / "tuned" / "shapes_tiny_8-box"
    other.parent.mkdir()
    run_folder.parent.rename(other)
    again, _ = load.load_step([f"config={other}/train/config.json"], ())
    wanted = resolved("experiment=tiny", "train.lr=0.5")
    assert stage_keys(again, "train") == stage_keys(wanted, "train")
    assert again.experiment == "tuned"


def test_a_config_json_elsewhere_needs_a_name_or_a_place(run_folder: Path) -> None:
    copy = (run_folder / "config.json").rename("copy.json")
    with pytest.raises(UserError, match=r"copy.json holds the keys of a stage .*: give experiment"):
        load.load_step([f"config={copy}"], ("out",))
    again, own = load.load_step([f"config={copy}", "out=here"], ("out",))
    assert (again.train.lr, own) == (0.5, {"out": "here"})
    with pytest.raises(UserError, match=r"data.resolution=9 cannot be halved 1 times"):
        load.load_step([f"config={copy}", "out=here", "data.resolution=9"], ("out",))


def test_a_file_of_named_experiments_is_laid_over_config_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("runtime: {workers: 3}\nexperiments: {mine: {like: tiny, train: {lr: 0.25}}}")
    config, _ = load.load_step([f"config={file}", "experiment=mine"], ())
    wanted = resolved("experiment=tiny", "train.lr=0.25", "runtime.workers=3")
    assert config == wanted.model_copy(update={"experiment": "mine"})
    whole, _ = load.load_step([f"config={load.DEFAULT_FILE}", "experiment=tiny"], ())
    assert whole == resolved("experiment=tiny")


def test_settings_come_back_from_their_words() -> None:
    import shlex

    words = ("runtime.workers=3", "data.pack_dir=/with space/it's", "launch.launcher=none")
    wanted = resolved("experiment=tiny", *words)
    again, _ = load.load_step(shlex.split(settings_words(wanted)), ())
    assert again.runtime.workers == 3
    assert again.data.pack_dir == "/with space/it's"
    assert again.launch == wanted.launch


def test_the_word_that_torch_distributed_launch_adds_is_ignored() -> None:
    assert load.load_step(["--local-rank=1", "experiment=tiny"], ())[0].experiment == "tiny"
    with pytest.raises(UserError, match="unknown key --other"):
        load.load_step(["--other=1"], ())


@given(st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3))
def test_merge_keeps_what_is_not_overridden(over: dict[str, int]) -> None:
    base = {"a": 1, "b": {"x": 1}}
    merged = merge(base, over)
    assert {k: merged[k] for k in over} == over
    assert {k: merged[k] for k in base if k not in over} == {
        k: base[k] for k in base if k not in over
    }


def test_pins_agree() -> None:
    """envs/requirements.txt is the source; the conda file and the constraints repeat it."""
    pins = [x for x in (ROOT / "envs/requirements.txt").read_text().splitlines() if x[0] != "#"]
    conda = yaml.safe_load((ROOT / "envs/pipeline.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == pins
    constraints = (ROOT / "envs/constraints.txt").read_text().lower().splitlines()
    for name in ("workflow", "dev", "kubernetes"):
        pins += (ROOT / f"envs/{name}.txt").read_text().splitlines()
    for pin in pins:
        name, _, version = pin.lower().partition("==")
        found = [c for c in constraints if re.split("[=]", c)[0].replace("_", "-") == name]
        assert found in ([], [f"{name}=={version}"]), (pin, found)
        assert pin[0] == "#" or version, pin

"""The workflow on documents: one real run of a short lcm_mse_smoke, and dry runs on it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_interface_executor_plugins.settings import ExecMode

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.words import parse_overrides
from pipeline.reporting import sentences
from pipeline.workflow import kinds
from pipeline.workflow.documents import Documents, predict_problem
from tests.conftest import ROOT

RUN = Path("results/lcm_mse_smoke/made")
CODE = ("Snakefile", "Makefile", "config.yaml", "pipeline", "envs", "profiles")
SHORT = "train.images=640 train.warmup_images=64 launch.threads=1 runtime.gpus.train=1"
AFTER_TRAINING = ["predict", "report", "score"]


class Project:
    """A copy of the project in which Snakemake runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("IMAGENET")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(
        self, *flags: str, words: str = "", targets: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Snakemake on the short experiment with more `words`."""
        config = ["experiment=lcm_mse_smoke", f"set={json.dumps([f'{SHORT} {words}'.strip()])}"]
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1"]
        command += [*flags, "--config", *config, "--", *targets]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def jobs(self, words: str = "") -> list[str]:
        """The rules that a dry run would run, sorted."""
        done = self.run("--dry-run", words=words)
        assert done.returncode == 0, done.stdout + done.stderr
        return rules(done)


def rules(done: subprocess.CompletedProcess[str]) -> list[str]:
    found = re.findall(r"^(?:local)?rule (\w+):$", done.stdout + done.stderr, re.M)
    return sorted(rule for rule in found if rule != "all")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The short experiment, run whole."""
    folder = tmp_path_factory.mktemp("documents")
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    project = Project(folder)
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done) == ["predict", "prepare", "report", "score", "train"]
    return project


@pytest.mark.slow
def test_what_a_run_leaves(finished: Project) -> None:
    for name in (
        "results/data/made.json",
        RUN / "train/weights.safetensors",
        RUN / "train/curve.jsonl",
        RUN / "predict/predicted.npy",
        RUN / "predict/predict.json",
        RUN / "metrics/scores.json",
        RUN / "report/summary.txt",
        RUN / "report/index.html",
        RUN / "report/curve.png",
        "results/index.html",
        "results/experiments.html",
    ):
        assert (finished.folder / name).stat().st_size > 0, name
    log = (finished.folder / "results/data/made.log").read_text()
    assert "835 pieces of 2 to 24, 58 documents held out" in log
    cards = (finished.folder / "results/index.html").read_text()
    assert "lcm_mse_smoke, made" in cards and "lcm_mse_smoke/made/report/curve.png" in cards
    scores = sentences.read_of_run(finished.folder / RUN / "metrics")
    assert scores is not None and all(line in cards for line in sentences.in_words(scores))
    assert "Left out" not in (finished.folder / "results/experiments.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", []),
        ("concept.num_scored=50", AFTER_TRAINING),
        ("sample.precision=fp32", AFTER_TRAINING),
        ("train.lr=1e-3", [*AFTER_TRAINING, "train"]),
        ("concept.held_out=0.2", [*AFTER_TRAINING, "train"]),
        ("concept.max_sentences=12", [*AFTER_TRAINING, "train"]),
        ("concept.dimension=16", ["predict", "prepare", "report", "score", "train"]),
        ("concept.scale=lcm_tails", [*AFTER_TRAINING, "train"]),
        ("runtime.sample_batch=3 runtime.gpus.sample=2 runtime.log_images=7", []),
    ],
)
def test_a_key_runs_the_stages_that_read_it(
    finished: Project, words: str, expected: list[str]
) -> None:
    assert finished.jobs(words) == sorted(expected)


@pytest.mark.slow
def test_documents_of_another_pack_are_told_before_the_first_job(finished: Project) -> None:
    manifest = finished.folder / "results/packs/made/manifest.json"
    text = manifest.read_text()
    sha256 = json.loads(text)["sha256"]["vectors"]
    manifest.write_text(text.replace(sha256, sha256[::-1]))
    try:
        done = finished.run(words="train.lr=1e-3")
    finally:
        manifest.write_text(text)
    assert done.returncode == 2
    assert "is not the one that the results here are of" in done.stderr
    assert rules(done) == []


@pytest.mark.slow
def test_another_scale_needs_another_normaliser_before_the_first_job(finished: Project) -> None:
    words = "concept.scale=lcm_tails"
    done = finished.run(words=words)
    assert done.returncode == 2 and rules(done) == []
    assert "has no normaliser for concept.scale=lcm_tails: run `make data`" in done.stderr
    made = finished.run("--forcerun", "prepare", words=words, targets=("data",))
    assert made.returncode == 0 and rules(made) == ["data", "prepare"]
    assert finished.jobs(words) == sorted([*AFTER_TRAINING, "train"])
    assert finished.jobs() == []


@pytest.mark.slow
def test_a_pack_that_is_gone_is_told_before_the_first_job(finished: Project) -> None:
    pack = finished.folder / "results/packs/made"
    pack.rename(pack.with_name("gone"))
    try:
        done = finished.run(words="train.lr=1e-3")
    finally:
        pack.with_name("gone").rename(pack)
    assert done.returncode == 2
    assert f"there is no pack in {Path('results/packs/made')}" in done.stderr
    assert "run `make data`" in done.stderr and rules(done) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("concept.held_out=0", "concept.held_out=0 leaves no document to score"),
        (
            "experiment=lcm_two_tower_smoke model.noise_levels=20",
            "concept.denoising_steps=40 is more than the 20 noise levels of the network: give",
        ),
    ],
)
def test_what_could_not_predict_is_told_before_the_training(words: str, sentence: str) -> None:
    """And not after weeks of it; what trains alone runs."""
    X = Documents(
        load.load_yaml(load.DEFAULT_FILE),
        parse_overrides(["experiment=lcm_mse_smoke", *words.split()]),
    )
    assert sentence in predict_problem(X.config)
    workflow = SimpleNamespace(executor_plugin="local", exec_mode=ExecMode.DEFAULT, dryrun=False)
    with pytest.raises(SystemExit):
        X.weights_to_predict(workflow)
    workflow.dryrun = True
    assert X.weights_to_predict(workflow) == X.weights


def test_the_rule_that_makes_the_pack(capsys: pytest.CaptureFixture[str]) -> None:
    for words, rule in (
        (["--config", "experiment=lcm_mse_smoke"], "prepare"),
        (["--config", "experiment=tiny", 'set=["train.lr=1e-3"]'], "downsample"),
        ([], "downsample"),
    ):
        kinds.main(words)
        assert capsys.readouterr().out == f"{rule}\n"


def test_prepare_gets_the_files_of_suffixes_and_the_scale_of_its_normaliser(tmp_path: Path) -> None:
    words = ["experiment=lcm_mse_smoke", "concept.pairs=true", "concept.scale=lcm_tails"]
    files = [f"{tmp_path}/{name}.npy" for name in ("end", "model")]
    words += [f"concept.suffix={files[0]}", f"concept.prompt_suffix={files[1]}"]
    with pytest.raises(UserError, match=r"concept.suffix=.* is not a file"):
        Documents(load.load_yaml(load.DEFAULT_FILE), parse_overrides(words))
    for file in files:
        Path(file).touch()
    X = Documents(load.load_yaml(load.DEFAULT_FILE), parse_overrides(words))
    assert X.suffix == files
    assert {"concept.scale=lcm_tails", *words[3:]} <= {*shlex.split(X.prepare_settings)}

"""The workflow end to end on a class tree of real photographs: what runs, what re-runs, what stops.

One real run of the `tiny` experiment serves all tests; those that change files work on a copy.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.base.files import sha256_file
from pipeline.bench.photos import write_photos
from pipeline.workflow.chatter import CHATTER
from tests.conftest import ROOT, Machine, alone

CODE = ("Snakefile", "Makefile", "config.yaml", "pipeline", "envs", "profiles")
SET = "data.source=train data.pack_dir=null"
ENGINE = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1"]


def copy_code(folder: Path) -> Path:
    """The project's own files in an empty folder."""
    folder.mkdir(parents=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Project:
    """A folder with the project in it, and an environment."""

    def __init__(self, folder: Path, images: Path | None) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("IMAGENET")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if images:
            self.environment["IMAGENET_DIR"] = str(images)

    def command(self, *flags: str, set: str = "") -> list[str]:
        words = f"{SET} {set}".strip()
        return [*ENGINE, "--config", "experiment=tiny", f"set={json.dumps([words])}", *flags]

    def snakemake(self, *flags: str, set: str = "") -> subprocess.CompletedProcess:
        return self.run(self.command(*flags, set=set))

    def run(self, command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def plan(self, set: str = "") -> subprocess.CompletedProcess:
        words = self.command(set=set)
        return self.run([sys.executable, "-m", "pipeline.plan", *words[words.index("--config") :]])

    def jobs(self, *flags: str, set: str = "") -> list[str]:
        """The rules that a dry run would run, sorted, without the target rule."""
        done = self.snakemake("--dry-run", *flags, set=set)
        assert done.returncode == 0, done.stderr
        return rules(done.stdout + done.stderr)


def rules(output: str) -> list[str]:
    return sorted(r for r in re.findall(r"^(?:local)?rule (\w+):$", output, re.M) if r != "all")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet") / "images"
    write_photos(folder, per_class=10, size=40)
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny experiment, run whole; tests on it only look (dry runs)."""
    project = Project(copy_code(tmp_path_factory.mktemp("work") / "project"), photos)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == sorted(
        ["downsample", "extractor", "reference", "train", "sample", "evaluate", "report"]
    )
    project.output = done.stdout + done.stderr  # type: ignore[attr-defined]
    return project


@pytest.fixture
def copied(finished: Project, photos: Path, tmp_path: Path) -> Callable[[], Project]:
    """Makes a copy of the finished project and its images that a test may change."""

    def copy() -> Project:
        shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
        shutil.copytree(photos, tmp_path / "images")
        return Project(tmp_path / "project", tmp_path / "images")

    return copy


RUN = Path("results/tiny/train_8-box")
FROM_TRAIN = ["evaluate", "report", "sample", "train"]
EVERYTHING = ["downsample", "evaluate", "reference", "report", "sample", "train"]


def test_the_brief_output_is_without_chatter(finished: Project) -> None:
    finished.environment["PIPELINE_OUTPUT"] = "brief"
    try:
        done = finished.snakemake("--forcerun", "report", "--dry-run")
    finally:
        del finished.environment["PIPELINE_OUTPUT"]
    brief, whole = done.stdout + done.stderr, finished.output  # type: ignore[attr-defined]
    assert rules(brief) == ["report"]
    chatter = [line for line in brief.splitlines() if line.startswith(CHATTER)]
    assert not chatter and all(f"\n{line}" in whole for line in CHATTER)


# --- what a run leaves --------------------------------------------------------------------------


def test_every_artefact_is_there(finished: Project, photos: Path) -> None:
    for name in (
        "results/data/train_8-box.json",
        "results/extractors/efficientnet-lite0.json",
        "results/reference/train_8-box-efficientnet-lite0.npz",
        RUN / "train/weights.safetensors",
        RUN / "train/curve.jsonl",
        RUN / "train/config.json",
        RUN / "train/benchmark.tsv",
        RUN / "sample/euler-4-g2/seed0/images.npy",
        RUN / "sample/euler-4-g2/seed0/grid.png",
        RUN / "sample/euler-4-g2/seed0/strip.png",
        RUN / "sample/euler-4-g2/seed0/config.json",
        RUN / "metrics/euler-4-g2-seed0.json",
        RUN / "metrics/euler-4-g2-seed0-neighbours.png",
        RUN / "metrics/config.json",
        RUN / "report/summary.txt",
        RUN / "report/nfe.png",
        RUN / "report/index.html",
        RUN / "report/config.json",
        "results/report.html",
        "results/index.html",
        "results/experiments.html",
    ):
        assert (finished.folder / name).stat().st_size > 0, name
    assert (photos / "train_8/box/manifest.json").exists()
    assert not list(finished.folder.rglob("*.tmp")) and not list(photos.rglob("*.tmp"))


def test_all_results_follow_the_umask(finished: Project) -> None:
    """Of the launcher's, the steps' and Snakemake's files; others may sample from the weights."""
    umask = os.umask(0o022)
    os.umask(umask)
    results = [path for path in (finished.folder / "results").rglob("*") if path.is_file()]
    modes = {path: path.stat().st_mode & 0o777 for path in results}
    assert {path: mode for path, mode in modes.items() if mode != 0o666 & ~umask} == {}


def test_the_run_says_what_it_does(finished: Project) -> None:
    output = finished.output  # type: ignore[attr-defined]
    assert "experiment tiny, data train_8-box (resolution 8 from the configuration)" in output
    assert "frechet_efflite0_96" in output and "report: results/report.html" in output
    assert f"report: {RUN}/report/index.html" in output
    assert re.search(r"all experiments \(\d+ scores\): results/index.html", output)
    if not shutil.which("nvidia-smi"):
        assert "no GPU is visible" in output


# --- re-runs ------------------------------------------------------------------------------------


def test_nothing_changed_nothing_runs_quickly(finished: Project, shared_machine: Machine) -> None:
    with alone(shared_machine):
        began = time.monotonic()
        done = finished.snakemake()
        seconds = time.monotonic() - began
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert seconds < 6


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sample.guidance=3", ["evaluate", "report", "sample"]),
        ("sample.rtol=1e-3", ["evaluate", "report", "sample"]),
        ("evaluate.seed=1", ["evaluate", "report"]),
        (
            "evaluate.extractor=inception-v3-compat",
            ["evaluate", "extractor", "reference", "report"],
        ),
        ("report.grid_columns=3", ["report"]),
        ("train.lr=2e-4", FROM_TRAIN),
        ("model.dropout=0.5", FROM_TRAIN),
        ("train.images=1280", FROM_TRAIN),
        ("data.resolution=16", EVERYTHING),
        ("runtime.workers=1 runtime.compile=false runtime.sample_batch=3", []),
        ("runtime.gpus.train=1 runtime.log_images=7 launch.launcher=none launch.threads=1", []),
    ],
)
def test_a_key_runs_exactly_the_stages_that_read_it(
    finished: Project, change: str, expected: list[str]
) -> None:
    assert finished.jobs(set=change) == expected


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ("sample.seeds=[0,1]", 1),
        ("sample.runs=[{}]", 0),
        ("sample.runs=[{}, {solver: heun, steps: 2}]", 1),
        ("sample.runs=[{}, {solver: heun, steps: 2, seeds: [3, 4]}, {steps: 2}]", 3),
    ],
)
def test_new_samplers_and_seeds_run_beside_the_old(
    finished: Project, change: str, new: int
) -> None:
    expected = [*["evaluate"] * new, *["report"] * bool(new), *["sample"] * new]
    assert finished.jobs(set=change) == expected


def test_samplers_by_snakemakes_own_config(finished: Project) -> None:
    runs = "sample={runs: [{}, {solver: heun, steps: 2}]}"
    done = finished.snakemake(runs, "--dry-run")
    assert rules(done.stdout + done.stderr) == ["evaluate", "report", "sample"], done.stderr
    assert "heun-2-g2" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "runs",
    [
        "[{solver: heun}, {solver: rk4}]",
        pytest.param('[{"solver":"heun"},{"solver":"rk4"}]', marks=pytest.mark.slow),
    ],
)
def test_samplers_by_make(fresh: Project, runs: str) -> None:
    (fresh.folder / ".venv").mkdir()
    (fresh.folder / ".venv" / "installed").touch()
    words = ["EXPERIMENT=tiny", "GPUS=1", "CORES=2", f"SET=data.dir='/it''s'  sample.runs={runs}"]
    done = fresh.run(["make", "plan", *words])
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^sample \((\S+) seed=0\)", done.stdout, re.M)
    assert sorted(found) == ["heun-4-g2", "rk4-4-g2"]


def test_a_guide_is_an_input_and_must_exist(finished: Project) -> None:
    (finished.folder / "weak.safetensors").write_bytes(b"w")
    guided = "sample.runs=[{}, {guide: weak.safetensors}]"
    assert finished.jobs(set=guided) == ["evaluate", "report", "sample"]
    (finished.folder / "weak.safetensors").unlink()
    assert_stopped(finished.snakemake("--dry-run", set=guided), "weak.safetensors is not a file")


def test_one_average_more_does_not_hide_changed_keys(finished: Project) -> None:
    """Snakemake compares no parameters of a rule one of whose files it has never made."""
    more = "train.ema_halflife_images=[64,500]"
    assert finished.jobs(set=f"{more} train.lr=2e-3") == FROM_TRAIN
    assert finished.jobs("samples", set=more) == ["sample", "samples", "train"]


GUIDED = "sample.runs=[{{}}, {{guidance: 3, guide: {{experiment: smoke, images: {}}}}}]"


def test_an_experiment_that_guides_is_trained_before_it(finished: Project) -> None:
    after = ["evaluate", "guide", "report", "sample"]
    assert finished.jobs(set=GUIDED.format(64)) == after
    done = finished.plan(set=GUIDED.format(64))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^guide  ", done.stdout, re.M) and "smoke-64: " in done.stdout
    done = finished.snakemake("--dry-run", set=GUIDED.format(64).replace("smoke", "smok"))
    assert_stopped(done, "sample.guide: no experiment 'smok' in config.yaml; did you mean smoke?")


@pytest.mark.slow
def test_a_guide_is_trained_once_and_again_if_it_changes(copied: Callable[[], Project]) -> None:
    project = copied()
    done = project.snakemake(set=GUIDED.format(64))
    assert done.returncode == 0, done.stdout + done.stderr
    (guided,) = project.folder.glob(f"{RUN}/sample/*by-smoke_64-*/seed0/sample.json")
    weights = project.folder / "results/smoke-64/train_8-box/train/weights.safetensors"
    assert json.loads(guided.read_text())["guide_sha256"] == sha256_file(weights)
    # The same training serves other samplers
    stronger = GUIDED.format(64).replace("guidance: 3", "guidance: 4")
    assert project.jobs(set=stronger) == ["evaluate", "report", "sample"]
    assert project.jobs(set=GUIDED.format(128)) == ["evaluate", "guide", "report", "sample"]


def test_a_file_of_the_extractors_weights_is_an_input(finished: Project) -> None:
    (finished.folder / "mine.pth").write_bytes(b"w")
    after = ["evaluate", "extractor", "reference", "report"]
    assert finished.jobs(set="evaluate.weights=mine.pth") == after
    (finished.folder / "mine.pth").unlink()
    done = finished.snakemake("--dry-run", set="evaluate.weights=mine.pth")
    assert_stopped(done, "evaluate.weights=mine.pth is not a file")


@pytest.mark.slow
def test_the_content_of_the_first_weights_runs_train_again(
    copied: Callable[[], Project],
) -> None:
    project = copied()
    weights = project.folder / RUN / "train" / "weights.safetensors"
    (project.folder / "first").mkdir()
    first, other = project.folder / "first" / "w.safetensors", project.folder / "other.safetensors"
    shutil.copy2(weights, first)
    start, moved = "train.start=first/w.safetensors", "train.start=other.safetensors"
    assert project.jobs(set=start) == FROM_TRAIN
    done = project.snakemake("--", "train", set=start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting at step 0 from first/w.safetensors" in done.stdout + done.stderr

    # the same content: nothing, whatever its place and time
    first.rename(other)
    other.touch()
    assert project.jobs("--", "train", set=moved) == []
    # other content, though older than all results; and none
    shutil.copy2(weights, other)
    os.utime(other, (1, 1))
    assert project.jobs("--", "train", set=moved) == ["train"]
    assert project.jobs("--", "train") == ["train"]

    # refusals before the first job
    absent = project.snakemake("--dry-run", set="train.start=w")
    assert_stopped(absent, "train.start=w is not a file: give a file of weights, a checkpoint")
    own = f"train.start={RUN}/train/weights.safetensors"
    assert_stopped(project.snakemake(set=own), "is a file that this training writes itself: copy")
    wide = f"{moved} model.channels=64"
    says = "is of another network: model.channels=32 (here 64); give these keys as they are there"
    assert_stopped(project.snakemake(set=wide), says)
    assert_stopped(project.plan(wide), says)


POWER = "train.ema=power train.ema_snapshot_images=128"


def test_an_average_is_made_only_of_stored_ones(finished: Project) -> None:
    width = "sample.ema_width=0.07"
    assert finished.jobs(set=POWER) == FROM_TRAIN
    assert finished.jobs(set=f"{POWER} {width}") == ["average", *FROM_TRAIN]
    done = finished.snakemake("--dry-run", set=width)
    assert_stopped(done, "sample.ema_width=0.07 needs train.ema=power: give both, or null")


@pytest.mark.slow
def test_another_width_trains_nothing(copied: Callable[[], Project]) -> None:
    project = copied()
    done = project.snakemake("--", "samples", set=f"{POWER} sample.ema_width=0.07")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "average: width 0.07 at 640 images, its profile met to" in done.stdout + done.stderr
    (log,) = (project.folder / RUN / "average").glob("ema0.07-640.log")
    assert "reading 10 of 10 files" in log.read_text()
    for change in ("sample.ema_width=0.09", "sample.ema_width=0.07 sample.ema_images=256"):
        after = ["average", "evaluate", "report", "sample"]
        assert project.jobs(set=f"{POWER} {change}") == after
    runs = "sample.runs=[{ema_width: 0.07}, {ema_width: 0.07, steps: 2}, {ema_width: 0.08}]"
    expected = ["average", *["evaluate"] * 3, "report", "sample", "sample"]
    assert project.jobs(set=f"{POWER} {runs}") == expected


def test_unknown_keys_of_a_run_stop_snakemake(finished: Project) -> None:
    done = finished.snakemake("--dry-run", set="sample.runs=[{}, {stpes: 9}]")
    assert_stopped(done, "sample.runs[1]: unknown key stpes; did you mean steps?")
    done = finished.snakemake("--dry-run", set="sample.runs=[{}, {num: 9}]")
    assert_stopped(done, "sample.runs[0] and sample.runs[1] have one name, euler-4-g2")


@pytest.mark.parametrize("flags", [["--cores", "1"], ["--resources", "gpu=7"], ["--cores", "8"]])
def test_hardware_runs_nothing(finished: Project, flags: list[str]) -> None:
    assert finished.jobs(*flags) == []


def test_another_resolution_lies_beside(finished: Project) -> None:
    done = finished.snakemake("--dry-run", set="data.resolution=16")
    assert "results/tiny/train_16-box/train/weights.safetensors" in done.stdout + done.stderr
    assert str(RUN) not in done.stdout + done.stderr


def test_moved_images_and_pack_run_nothing(copied: Callable[[], Project], tmp_path: Path) -> None:
    project = copied()
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    project.environment["IMAGENET_DIR"] = str(tmp_path / "elsewhere")
    assert project.jobs() == []


@pytest.mark.slow
def test_chosen_classes_are_sampled_scored_and_named_in_the_report(
    copied: Callable[[], Project],
) -> None:
    project = copied()
    done = project.snakemake(set="sample.classes=[1]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == ["evaluate", "report", "sample"]
    [labels] = (project.folder / RUN / "sample").glob("*classes1*/seed0/labels.npy")
    assert set(np.load(labels)) == {1}
    assert "sample.classes: 1" in (project.folder / RUN / "report/table.html").read_text()


@pytest.mark.slow
def test_a_deleted_pack_is_made_again_and_nothing_else(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    project = copied()
    shutil.rmtree(tmp_path / "images" / "train_8")
    assert project.jobs() == []
    stopped = project.snakemake(set="evaluate.seed=1")
    assert stopped.returncode != 0
    assert "run `make data`" in stopped.stdout + stopped.stderr
    assert "Traceback" not in stopped.stdout + stopped.stderr
    # before the first job, and in plan
    folder = tmp_path / "images/train_8/box"
    told = f"there is no pack in {folder}, but the results here are of one (results/data/train_8"
    assert "rule evaluate" not in stopped.stdout + stopped.stderr
    assert_stopped(stopped, told)
    assert_stopped(project.snakemake(), told)
    assert_stopped(project.plan(), told)
    made = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "images" / "train_8/box/manifest.json").exists()
    # the record is equal, and no job was begun that would have lost its former results
    assert project.jobs() == []
    assert project.jobs(set="evaluate.seed=1") == ["evaluate", "report"]


@pytest.mark.slow
def test_reference_statistics_are_shared_between_checkouts(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    statistics = "results/reference/train_8-box-efficientnet-lite0.npz"
    first, second = copied(), Project(copy_code(tmp_path / "second"), tmp_path / "images")
    (first.folder / statistics).unlink()
    (tmp_path / "cache").mkdir()
    for project, said in ((first, "Moving output file"), (second, "Symlinking output file")):
        project.environment["SNAKEMAKE_OUTPUT_CACHE"] = str(tmp_path / "cache")
        done = project.snakemake("--cache", "reference", "--", statistics)
        assert done.returncode == 0 and f"{said} {statistics}" in done.stderr, done.stderr
        assert (project.folder / statistics).resolve().parent == tmp_path / "cache"
    assert "Moving output file" not in done.stderr


@pytest.mark.slow
def test_another_image_set_is_told_before_the_first_job(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    project = copied()
    write_photos(tmp_path / "other", per_class=9, size=40)
    project.environment["IMAGENET_DIR"] = str(tmp_path / "other")
    absent = f"there is no pack in {tmp_path / 'other'}/train_8/box"
    assert_stopped(project.snakemake(), absent)
    assert_stopped(project.plan(), absent)
    assert absent in project.snakemake("--dry-run").stderr
    # its pack is made elsewhere
    elsewhere = Project(copy_code(tmp_path / "elsewhere"), tmp_path / "other")
    made = elsewhere.snakemake("--", "downsample")
    assert made.returncode == 0, made.stderr
    different = "is not the one that the results here are of"
    assert_stopped(project.snakemake(), different)
    assert_stopped(project.plan(), different)
    # make data takes it over, and everything follows
    made = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert made.returncode == 0, made.stderr
    assert project.jobs() == sorted([*FROM_TRAIN, "reference"])
    # without a place of packs nothing is said
    del project.environment["IMAGENET_DIR"]
    assert project.jobs() == sorted([*FROM_TRAIN, "reference"])


@pytest.mark.slow
def test_longer_training_goes_on(copied: Callable[[], Project]) -> None:
    project = copied()
    done = project.snakemake("--until", "train", set="train.images=704")
    output = done.stdout + done.stderr
    assert done.returncode == 0 and rules(output) == ["train"], output
    assert "going on from step 20 of 22" in output


@pytest.mark.slow
def test_another_rate_starts_anew_and_the_old_one_is_kept(copied: Callable[[], Project]) -> None:
    project = copied()
    first = (project.folder / RUN / "train/weights.safetensors").read_bytes()
    changed = project.snakemake("--until", "train", set="train.lr=2e-4 train.images=64")
    assert changed.returncode == 0 and "going on" not in changed.stdout + changed.stderr
    assert len(list((project.folder / RUN / "train/checkpoints").iterdir())) == 2
    back = project.snakemake("--until", "train")
    assert "going on from step 20 of 20" in back.stdout + back.stderr
    assert (project.folder / RUN / "train/weights.safetensors").read_bytes() == first


@pytest.mark.slow
def test_a_killed_snakemake_goes_on_and_never_trains_twice(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    """SIGKILL of snakemake alone: its trainer lives on and the same command waits for it."""
    project = copied()
    long = "train.seed=5 train.images=3200 runtime.checkpoint_images=320"
    command = project.command("--until", "train", set=long)
    engine = subprocess.Popen(command, cwd=project.folder, env=project.environment)
    folder = project.folder / RUN / "train/checkpoints"
    old = {p.name for p in folder.iterdir()}
    until(lambda: [p for p in folder.glob("*/step-*.pt") if p.parent.name not in old])
    trainers = [p.pid for p in psutil.process_iter() if is_trainer(p, project.folder)]
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    again = project.snakemake("--until", "train", set=long)
    output = again.stdout + again.stderr
    assert again.returncode == 0, output
    assert re.search(r"waiting: .* is in use by process \d+|going on from step", output)
    assert len(trainers) == 1 and not psutil.pid_exists(trainers[0])
    rows = (project.folder / RUN / "train/curve.jsonl").read_text().splitlines()
    assert len(rows) == 50  # 3,200 images in rows of 64: none missing, none twice


def is_trainer(process: psutil.Process, folder: Path) -> bool:
    try:
        words = process.cmdline()
        return (
            "pipeline.train" in words
            and "pipeline.launch" not in words
            and (process.cwd() == str(folder) and "bash" not in words[0])
        )
    except psutil.Error:
        return False


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# --- bad input ----------------------------------------------------------------------------------


def assert_stopped(done: subprocess.CompletedProcess, sentence: str) -> None:
    """One sentence, no traceback, not zero."""
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert sentence in output, output
    assert "Traceback" not in output
    assert output.count(sentence) <= 2, output  # the log is shown once more below the job


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """The project in an empty folder, without images."""
    return Project(copy_code(tmp_path / "project"), None)


def test_imagenet_dir_unset(fresh: Project) -> None:
    assert_stopped(
        fresh.snakemake(),
        "rule downsample, evaluate, reference, report, train needs IMAGENET_DIR, which is not set",
    )
    assert not (fresh.folder / "results").exists()


def test_imagenet_dir_empty_or_wrong(fresh: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fresh.environment["IMAGENET_DIR"] = str(tmp_path / "empty")
    assert_stopped(fresh.snakemake(), str(tmp_path / "empty"))
    fresh.environment["IMAGENET_DIR"] = str(tmp_path / "nowhere")
    assert_stopped(fresh.snakemake(), "nowhere is not a folder")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.lrr=1", "unknown key train.lrr; did you mean train.lr?"),
        pytest.param("train.lr=fast", "train.lr='fast' is not valid", marks=pytest.mark.slow),
        pytest.param(
            "data.resolution=12 model.channel_mult=[1,1,1,1]",
            "cannot be halved 3 times",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_keys(fresh: Project, word: str, sentence: str) -> None:
    assert_stopped(fresh.snakemake(set=word), sentence)
    plan = fresh.run([sys.executable, "-m", "pipeline.plan", *fresh.command(set=word)[-3:]])
    assert_stopped(plan, sentence)


def test_bad_keys_by_config_and_in_the_file(fresh: Project) -> None:
    done = fresh.run([*ENGINE, "--config", "experiment=tiny", "train={lrr: 1}"])
    assert_stopped(done, "unknown key train.lrr; did you mean train.lr?")
    path = fresh.folder / "config.yaml"
    path.write_text(path.read_text().replace("  lr: 1.0e-4", "  lrr: 1.0e-4"))
    assert_stopped(fresh.snakemake(), "unknown key train.lrr; did you mean train.lr?")


def test_an_indivisible_batch_stops_before_training(copied: Callable[[], Project]) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("needs a machine without a GPU to start two CPU ranks")
    project = copied()
    done = project.snakemake("--resources", "gpu=2", "--until", "train", set="train.batch=33")
    if os.cpu_count() == 1:
        pytest.skip("one core makes one rank")
    assert_stopped(done, "train.batch=33 cannot be divided over 2 processes")


def test_corrupt_images_are_all_named(copied: Callable[[], Project], tmp_path: Path) -> None:
    project = copied()
    victims = sorted((tmp_path / "images/train").rglob("*.JPEG"))[3:5]
    victims[0].write_bytes(b"not a jpeg")
    victims[1].write_bytes(victims[1].read_bytes()[:300])
    shutil.rmtree(tmp_path / "images" / "train_8")
    done = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert_stopped(done, "downsample.allow_bad")
    for victim in victims:
        assert victim.name in done.stdout + done.stderr
    assert not (tmp_path / "images/train_8/box/images.npy").exists()


def test_the_plan_reads_the_snakefile(fresh: Project) -> None:
    done = fresh.run(
        [sys.executable, "-m", "pipeline.plan", "--cores", "8", "--resources", "gpu=4"]
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["train"].split()[1] == "4"
    assert lines["reference"].split()[1] == "4" and lines["extractor"].split()[1] == "-"
    assert sum(line.startswith("sample (dopri5") for line in done.stdout.splitlines()) == 3
    assert "IMAGENET_DIR=(NOT SET)" in lines["downsample"]
    assert "563,013 steps of 2,048" in done.stdout
    assert not (fresh.folder / "results").exists()


SELECT = (
    "train.ema=power train.ema_snapshot_images=128 select.ema_widths=[0.05,0.2] select.num=20 "
    "select.guidance=[1,3] select.max_tries=6 sample.selected=true"
)


@pytest.mark.slow
def test_a_search_after_the_training(copied: Callable[[], Project]) -> None:
    """The whole of it; then a key of the search runs the search and what follows, no training."""
    project = copied()
    done = project.snakemake(set=SELECT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == ["evaluate", "report", "sample", "select", "train"]
    run = project.folder / RUN
    choice = json.loads((run / "select/choice.json").read_text())
    about = json.loads((run / "sample/euler-4-select/seed0/sample.json").read_text())
    assert about["guidance"] == choice["chosen"]["guidance"]
    assert about["weights_sha256"] == sha256_file(run / "select/weights.safetensors")
    assert (run / "report/index.html").read_text().count("data:image/png") == 5
    assert (run / "report/surface.png").read_bytes() == (run / "select/surface.png").read_bytes()
    summary = " ".join((run / "report/summary.txt").read_text().split())
    assert "6 tries of 20 samples with seed 1000000: EMA width" in summary
    assert "The chosen one on reported seed 0: Fréchet distance" in summary
    assert "not comparable with reported ones" in summary

    assert project.jobs(set=SELECT) == []
    after = ["evaluate", "report", "sample", "select"]
    for word in ("select.num=21", "select.seeds=[4]", "select.max_tries=8"):
        assert project.jobs(set=f"{SELECT} {word}") == after
    assert project.jobs(set=f"{SELECT} evaluate.kid_subsets=7") == ["evaluate", "report"]


MILESTONES = "evaluate.milestones=true runtime.milestone_images=256"


def test_scores_over_the_training_run_nothing_else(finished: Project) -> None:
    assert finished.jobs(set=MILESTONES) == ["milestones", "report"]
    assert finished.jobs(set="evaluate.milestone_num=30") == []  # read by that rule alone
    done = finished.plan(f"{MILESTONES} evaluate.milestone_num=30")
    assert "3 times 30 images = 90 images, 720 evaluations of networks" in done.stdout
    done = finished.snakemake("--dry-run", set="evaluate.milestones=true")
    assert_stopped(
        done, "nothing to score but the end of the training: set runtime.milestone_images"
    )


@pytest.mark.slow
def test_scores_over_the_training_are_in_the_report(copied: Callable[[], Project]) -> None:
    """Then a key of theirs runs them and the report; the training goes on only if it is longer."""
    project = copied()
    milestones = f"{MILESTONES} train.ema=power train.ema_snapshot_images=256"
    done = project.snakemake(set=milestones)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == sorted([*FROM_TRAIN, "milestones"])
    run = project.folder / RUN
    lines = (run / "milestones/curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [256, 512, 640]
    assert (run / "report/index.html").read_text().count("data:image/png") == 5
    summary = " ".join((run / "report/summary.txt").read_text().split())
    assert "Over the training, Fréchet distance" in summary and "20 samples with seed 0" in summary

    assert project.jobs(set=milestones) == []
    assert project.jobs(set=f"{milestones} evaluate.milestone_num=21") == ["milestones", "report"]
    assert project.jobs() == FROM_TRAIN

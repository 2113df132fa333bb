"""The workflow end to end on a class tree of real photographs: what a run leaves and re-runs."""

import os
import re
import resource
import shutil

import pytest

from pipeline.workflow.chatter import CHATTER
from tests.workflow.project import EVERYTHING, FROM_TRAIN, RUN, Project, assert_stopped, rules


def test_the_brief_output_is_without_chatter(finished: Project) -> None:
    finished.environment["PIPELINE_OUTPUT"] = "brief"
    try:
        done = finished.snakemake("--forcerun", "report", "--dry-run")
    finally:
        del finished.environment["PIPELINE_OUTPUT"]
    brief, whole = done.stdout + done.stderr, finished.output
    assert rules(brief) == ["report"]
    chatter = [line for line in brief.splitlines() if line.startswith(CHATTER)]
    assert not chatter and all(f"\n{line}" in whole for line in CHATTER)


# --- what a run leaves --------------------------------------------------------------------------


def test_every_artefact_is_there(finished: Project) -> None:
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
    images = finished.folder.parent / "images"
    assert (images / "train_8/box/manifest.json").exists()
    assert not list(finished.folder.rglob("*.tmp")) and not list(images.rglob("*.tmp"))


def test_all_results_follow_the_umask(finished: Project) -> None:
    """Of the launcher's, the steps' and Snakemake's files; others may sample from the weights."""
    umask = os.umask(0o022)
    os.umask(umask)
    results = [path for path in (finished.folder / "results").rglob("*") if path.is_file()]
    modes = {path: path.stat().st_mode & 0o777 for path in results}
    assert {path: mode for path, mode in modes.items() if mode != 0o666 & ~umask} == {}


def test_the_run_says_what_it_does(finished: Project) -> None:
    output = finished.output
    assert "experiment tiny, data train_8-box (resolution 8 from the configuration)" in output
    assert "frechet_efflite0_96" in output and "report: results/report.html" in output
    assert f"report: {RUN}/report/index.html" in output
    assert re.search(r"all experiments \(\d+ scores\): results/index.html", output)
    if not shutil.which("nvidia-smi"):
        assert "no GPU is visible" in output


# --- re-runs ------------------------------------------------------------------------------------


def test_nothing_changed_nothing_runs_quickly(finished: Project) -> None:
    """Seconds of processors: others may keep them busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = finished.snakemake()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sample.guidance=3", ["evaluate", "report", "sample"]),
        ("sample.rtol=1e-3", ["evaluate", "report", "sample"]),
        ("sample.classes=[1]", ["evaluate", "report", "sample"]),
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
        ("runtime.gpus.train=1 runtime.log_images=7 launch.launcher=none launch.threads=2", []),
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


def test_a_solver_that_is_fitted_comes_before_its_samples(finished: Project) -> None:
    found = finished.jobs(set="sample.runs=[{}, {solver: learned, steps: 2}]")
    assert found == ["evaluate", "report", "sample", "solver"]


def test_samplers_by_snakemakes_own_config(finished: Project) -> None:
    runs = "sample={runs: [{}, {solver: heun, steps: 2}]}"
    done = finished.snakemake(runs, "--dry-run")
    assert rules(done.stdout + done.stderr) == ["evaluate", "report", "sample"], done.stderr
    assert "heun-2-g2" in done.stdout + done.stderr


@pytest.mark.slow
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


def test_a_file_of_the_extractors_weights_is_an_input(finished: Project) -> None:
    (finished.folder / "mine.pth").write_bytes(b"w")
    after = ["evaluate", "extractor", "reference", "report"]
    assert finished.jobs(set="evaluate.weights=mine.pth") == after
    (finished.folder / "mine.pth").unlink()
    done = finished.snakemake("--dry-run", set="evaluate.weights=mine.pth")
    assert_stopped(done, "evaluate.weights=mine.pth is not a file")


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


def test_the_plan_reads_the_snakefile(fresh: Project) -> None:
    done = fresh.plan_of("--cores", "8", "--resources", "gpu=4")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.strip()]
    lines = {line.split()[0]: line for line in reversed(rows)}  # of the jobs, which come first
    assert lines["train"].split()[1] == "4"
    assert lines["reference"].split()[1] == "4" and lines["extractor"].split()[1] == "-"
    assert sum(line.startswith("sample (dopri5") for line in done.stdout.splitlines()) == 3
    assert "IMAGENET_DIR=(NOT SET)" in lines["downsample"]
    assert "563,013 steps of 2,048" in done.stdout
    assert not (fresh.folder / "results").exists()

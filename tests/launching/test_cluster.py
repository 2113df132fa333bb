"""The workflow on a real Slurm, on one machine: one node, then two with a network between them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.bench.photos import PHOTOS, write_photos
from tests import nodes, pages, slurm
from tests.conftest import ROOT
from tests.launching import test_programs as theirs
from tests.on_ranks import train_on_ranks
from tests.test_train import losses, outcome
from tests.workflow.project import copy_code

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm.missing()), reason=f"NOT TESTED: a Slurm needs {slurm.missing()}"
    ),
]
Outcome = tuple[dict[str, torch.Tensor], list[dict]]
EACH = "runtime.log_images=32"  # a row for each step
# There is no accounting here, so the state of jobs comes from squeue.
FLAGS = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
FLAGS += ["--seconds-between-status-checks", "1", "--slurm-keep-successful-logs"]
FLAGS += ["--retries", "9"]  # for machines on which little is done before a limit of a minute
FLAGS += ["--latency-wait", "5", "--default-resources", "mem_mb=1000", "runtime=5"]


@pytest.fixture(scope="module")
def one_node() -> Iterator[dict[str, str]]:
    """The environment of a user of a Slurm with one node."""
    with place() as folder, slurm.cluster(folder) as environment:
        yield of_user(environment)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[dict[str, str]]:
    """The environment of a user of a Slurm with two nodes."""
    with place() as folder, nodes.nodes(2, folder) as inside:
        (folder / "slurm").mkdir()
        with slurm.cluster(folder / "slurm", [inside(1), inside(2)]) as environment:
            yield of_user(environment)


@contextmanager
def place() -> Iterator[Path]:
    """A new folder with a short path: sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp", ignore_cleanup_errors=True) as one:
        Path(one).chmod(0o755)  # munge wants others to reach its socket
        yield Path(one)


def of_user(environment: dict[str, str]) -> dict[str, str]:
    """With the project's tools, a snakemake that waits less, GPUs that this machine lacks."""
    commands = environment["PATH"].partition(":")[0]
    ours = f"{sys.executable} {ROOT}/tests/impatient_snakemake.py"
    slurm.executable(Path(commands) / "snakemake", f'#!/bin/sh\nexec {ours} "$@"\n')
    path = f"{commands}:{Path(sys.executable).parent}"
    return environment | {
        "PATH": f"{path}:{os.environ['PATH']}",
        "PIPELINE_GPU_IDS": "0,1,2,3",
        "OMP_NUM_THREADS": "1",
    }


def printed_by(words: list[str], project: Path, environment: dict[str, str]) -> str:
    """What a command prints, which ends well and in time."""
    done = subprocess.run(
        ["timeout", "-k", "10", "500", *words],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


SMALL = {
    "source .venv/bin/activate": "true",
    "experiment=imagenet": "experiment=tiny",
    "PACK": "results/packs/shapes_tiny_8/box",
    "partition=gpu": "partition=main",
    "minutes=720": "minutes=5",
    "memory_gb=128": "memory_gb=4",
    "pipeline.train data.path": "pipeline.train experiment=tiny data.path",
    "profiles/slurm": f"profiles/slurm {' '.join(FLAGS)}",
    "--set-resources": "--set-resources train:mem_mb=2000",
    "gpus.train=8": "gpus.train=4",
    "train:gpu=8": "train:gpu=4",
    "per-node=4": "per-node=2",
}


def printed_command(number: int, small: dict[str, str]) -> str:
    """A command of docs/slurm.md; `small` comes before SMALL, for what is this test's alone."""
    rest = {printed: ours for printed, ours in SMALL.items() if printed not in small}
    return pages.for_here(pages.commands("slurm")[number], small | rest)


LOOP = "pipeline/training/loop.py"
SLOW_STEPS = """

import time

quick_step = Trainer.train_step


def slow_step(trainer: Trainer) -> None:
    if len(list(trainer.job.scratch.glob("step-*.pt"))) < {stops}:
        time.sleep({seconds})
    quick_step(trainer)


Trainer.train_step = slow_step
"""


def slowed(project: Path, seconds: float, stops: int = 1) -> Path:
    """The project with training steps of at least that time until it has been stopped so often.

    20 such steps take longer than the job has, whatever the machine; what is left of them then
    takes little time, so that a busy machine does not come to the limit again and again.
    """
    with (project / LOOP).open("a") as file:
        file.write(SLOW_STEPS.format(seconds=seconds, stops=stops))
    return project


@pytest.fixture(scope="module")
def finished(one_node: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment, run whole through one node by the page's first command.

    Its training comes to the time limit of a job.
    """
    project = slowed(copy_code(tmp_path_factory.mktemp("slurm") / "project"), 3.05)  # in all 61 s
    settings = f"runtime.gpus.evaluate=2 runtime.workers=2 {EACH} launch.slurm.signal_seconds=60"
    command = printed_command(1, {"experiment=imagenet": f"experiment=tiny set='{settings}'"})
    # its jobs leave after 60 s
    more = "--set-resources train:mem_mb=1000 train:runtime=2 --set-threads train=2"
    printed_by(["bash", "-c", f"{command} {more}"], project, one_node)
    return project


@pytest.fixture(scope="module")
def four(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What four ranks of micro-batches of 8 make on one machine, without Slurm."""
    project = copied(finished, tmp_path_factory.mktemp("four") / "project")
    train_on_ranks(4, [*keys_by_hand(project), "runtime.micro_batch=8"])
    return outcome(project / "out")


def logs(project: Path, rule: str) -> list[str]:
    """What the Slurm jobs of a rule printed."""
    places = (project / ".snakemake/slurm_logs").glob(f"rule_{rule}/**/*.log")
    return [path.read_text() for path in places]


def test_the_whole_experiment_runs_through_slurm(finished: Path) -> None:
    assert "Fréchet" in (finished / "results/tiny/shapes_tiny_8-box/report/table.html").read_text()
    for rule, count in {"train": 2, "sample": 2, "evaluate": 2, "reference": 1}.items():
        printed = logs(finished, rule)
        assert printed
        for text in printed:
            ids = re.search(r"CUDA_VISIBLE_DEVICES=([\d,]+)", text)
            assert ids and len(ids.group(1).split(",")) == count, text


STAND_IN = """
import json, os, pathlib, sys, time
start = time.time()
time.sleep(5)
if os.environ["RANK"] == "0":
    ids = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    found = {"ids": ids, "start": start, "end": time.time()}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
"""


def test_two_jobs_at_once_have_devices_of_their_own(
    one_node: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    environment = one_node | {"PYTHONPATH": f"{finished}:{tmp_path}"}
    for name in ("a", "b"):
        command = f"{sys.executable} -m pipeline.launch --gpus 2 -- -m stand_in {tmp_path}/{name}"
        words = ["sbatch", "--gpus=2", "--cpus-per-task=2", f"--output={tmp_path}/log{name}"]
        subprocess.run([*words, f"--wrap={command}"], env=environment, cwd=tmp_path, check=True)
    until = time.monotonic() + 600
    while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()):
        assert time.monotonic() < until, [p.read_text() for p in tmp_path.glob("log*")]
        time.sleep(0.2)
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a", "b"))
    assert not set(one["ids"]) & set(two["ids"]) and len(one["ids"]) == len(two["ids"]) == 2
    assert one["start"] < two["end"] and two["start"] < one["end"]


def training(project: Path) -> Outcome:
    """Weights and curve of a project's training."""
    return outcome(project / "results/tiny/shapes_tiny_8-box/train")


def copied(finished: Path, folder: Path) -> Path:
    """The finished project without its training, and with the code as it is."""
    shutil.copytree(finished, folder, symlinks=True)
    shutil.copy(ROOT / LOOP, folder / LOOP)
    shutil.rmtree(folder / "results/tiny")
    shutil.rmtree(folder / ".snakemake/slurm_logs")
    return folder


def check_stops(printed: list[str]) -> None:
    """Every job of a training saved at its limit, except the one that came to the end."""
    assert all("Slurm gives this job" in text for text in printed)
    stopped = sum("stopped: saved at step" in text for text in printed)
    ended = sum("train: 640 images" in text for text in printed)
    assert stopped, "no job was at its limit"
    assert ended == 1 and stopped == len(printed) - 1


def same(one: Outcome, other: Outcome) -> bool:
    """Whether weights and losses are the same to the last bit."""
    return losses(one[1]) == losses(other[1]) and all(
        torch.equal(one[0][name], value) for name, value in other[0].items()
    )


def test_a_job_at_its_time_limit_saves_and_goes_on(finished: Path) -> None:
    check_stops(logs(finished, "train"))
    assert [row["step"] for row in training(finished)[1]] == list(range(1, 21))


def test_a_job_reads_the_folder_that_was_typed(one_node: dict[str, str], tmp_path: Path) -> None:
    """Whatever a shell, Snakemake or Slurm would make of its name."""
    project = copy_code(tmp_path / "project")
    images = tmp_path / 'it\'s "a" $HOME `id`; #1 & b'
    write_photos(images, per_class=2, size=20)
    quoted = "'" + str(images).replace("'", "''") + "'"
    settings = f"data.source=train data.dir={quoted} data.pack_dir={quoted}"
    words = ["snakemake", "--profile", "profiles/slurm", *FLAGS]
    words += ["--config", "experiment=tiny", f"set={json.dumps([settings])}", "--", "downsample"]
    printed_by(words, project, one_node)
    record = json.loads((project / "results/data/train_8-box.json").read_text())
    assert record["num_images"] == 2 * len(PHOTOS)
    assert (images / "train_8/box/manifest.json").exists()


@pytest.mark.skipif(bool(nodes.missing()), reason=f"NOT TESTED: nodes need {nodes.missing()}")
def test_two_nodes_of_two_are_one_of_four_also_at_their_time_limit(
    two_nodes: dict[str, str], finished: Path, four: Outcome, tmp_path: Path
) -> None:
    """Through Snakemake, by the page's command: one task on each node, torchrun between them."""
    project = slowed(copied(finished, tmp_path / "project"), 3.55)  # in all 71 s
    # its jobs leave after 70 s
    settings = f"runtime.micro_batch=8 {EACH} launch.slurm.signal_seconds=50 "
    limits = "--set-resources train:runtime=2 train:mem_mb=2000"
    command = printed_command(2, {"'set=": f"'set={settings}", "--set-resources": limits})
    printed_by(["bash", "-c", f"{command} -- train"], project, two_nodes)
    printed = logs(project, "train")
    check_stops(printed)
    assert any("--nnodes=2" in text for text in printed)
    assert same(training(project), four)


def record(project: Path) -> Path:
    """The record of the finished project's pack."""
    return project / "results/data/shapes_tiny_8-box.json"


def keys_by_hand(project: Path) -> list[str]:
    """Of a training of the finished project's pack."""
    pack = project / "results/packs/shapes_tiny_8/box"
    places = [f"data.path={pack}", f"record={record(project)}", f"out={project}/out"]
    return ["experiment=tiny", *places, EACH]


def test_the_same_by_srun(one_node: dict[str, str], finished: Path, tmp_path: Path) -> None:
    """By the page's commands: one launcher with two GPUs, and two tasks."""
    project = copied(finished, tmp_path / "project")
    place = f"data.path=PACK record={record(project)} {EACH} out={project}"
    small = {"gpus=4": "gpus=2 --mem=1G", "ntasks=4": "ntasks=2", "--gpus 4": "--gpus 2"}
    for number, out in ((4, "launched"), (5, "tasks")):
        command = printed_command(number, {"data.path=PACK": f"{place}/{out}", **small})
        printed_by(["bash", "-c", command], project, one_node)
        assert same(outcome(project / out), training(finished))


def started(project: Path, environment: dict[str, str], *more: str) -> "subprocess.Popen[str]":
    """The training by hand through submitit on Slurm, begun."""
    words = [sys.executable, "-m", "pipeline.train", *keys_by_hand(project), *more]
    words += ["launcher=submitit_slurm", "launch.slurm.memory_gb=1"]
    return subprocess.Popen(
        [*words, "runtime.progress_seconds=1"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(words: str, run: "subprocess.Popen[str]") -> str:
    """The first further line of a command's that has these words."""
    assert run.stdout is not None
    while words not in (line := run.stdout.readline()):
        assert run.poll() is None, line
    return line


def test_submitit_queues_a_job_again_that_is_preempted_or_at_its_time_limit(
    one_node: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    """The same weights after both: Slurm sends SIGTERM, then its warning before the end."""
    project = slowed(copied(finished, tmp_path / "project"), 2.7, stops=2)
    limits = ("launch.slurm.minutes=5", "launch.slurm.signal_seconds=30")
    run = started(project, one_node, *limits)
    job = until("by submitit", run).split()[1]
    until("images/s", run)
    slurm.output(one_node, "scancel", "--signal=TERM", job)
    saved = until("stopped: saved at step", run)
    until("resuming from step", run)
    until("images/s", run)
    # Slurm looks each 30 s whether a job has less than 30 s more than the warning needs: now this
    # one has, with 14 steps or more to do, which take longer.
    slurm.output(one_node, "scontrol", "update", f"JobId={job}", "EndTime=now+55seconds")
    assert until("stopped: saved at step", run) != saved
    text = run.communicate(timeout=600)[0]
    assert run.returncode == 0 and "resuming from step" in text, text
    logs = "".join(p.read_text() for p in project.glob("results/jobs/*/*_0_log.out"))
    assert logs.count("Requeued job") == logs.count("stopped: saved at step") == 2
    assert same(outcome(project / "out"), training(finished))


@pytest.mark.skipif(bool(nodes.missing()), reason=f"NOT TESTED: nodes need {nodes.missing()}")
def test_submitit_over_two_nodes_is_one_of_four(
    two_nodes: dict[str, str], finished: Path, four: Outcome, tmp_path: Path
) -> None:
    """By the page's command, and with the interface given."""
    for name, more in (("page", ""), ("given", f"launch.interface={nodes.CARD}")):
        project = copied(finished, tmp_path / name)
        place = f"data.path=PACK record={record(project)} {EACH} out={project}/out {more}"
        ranks = "runtime.gpus.train=2 runtime.micro_batch=8"
        command = printed_command(3, {"data.path=PACK": f"{place} {ranks}"})
        printed_by(["bash", "-c", command], project, two_nodes)
        assert same(outcome(project / "out"), four)


def test_a_stopped_launcher_takes_its_job_out_of_the_queue(
    one_node: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    project = copied(finished, tmp_path / "project")
    words = ["sbatch", "--parsable", "--gpus=4", "--output=/dev/null", "--wrap=sleep 100"]
    other = slurm.output(one_node, *words).strip()
    run = started(project, one_node)
    job = until("by submitit", run).split()[1]
    assert slurm.output(one_node, "squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING"
    run.send_signal(signal.SIGTERM)
    assert run.wait(600) == 75, run.stdout.read()
    assert "PENDING" not in slurm.output(one_node, "squeue", "-h", "-j", job, "-o", "%T")
    slurm.output(one_node, "scancel", other)


def test_a_stopped_launcher_lets_its_job_save(
    one_node: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    project = copied(finished, tmp_path / "project")
    run = started(project, one_node, "train.images=320000")
    until("images/s", run)
    run.send_signal(signal.SIGTERM)
    printed = run.communicate(timeout=600)[0]
    assert run.returncode == 75 and "stopped: saved at step" in printed, printed
    assert list((project / "out").glob("checkpoints/*/step-*.pt"))


def test_another_environments_program_is_a_slurm_job(
    one_node: dict[str, str], tmp_path: Path
) -> None:
    python = theirs.environment_in(tmp_path / "env")
    words = ["--python", python, "--processes", "2", "launcher=submitit_slurm"]
    words += ["launch.slurm.memory_gb=1", "launch.slurm.minutes=5"]
    environment = one_node | {"PYTHONPATH": str(ROOT), "THEIR_FOLDER": str(tmp_path)}
    printed_by(theirs.command(*words, after=theirs.WORDS), tmp_path, environment)
    ranks = theirs.facts(tmp_path)
    assert len(ranks) == 2
    theirs.check_words(ranks, python, "2")


@pytest.mark.skipif(bool(nodes.missing()), reason=f"NOT TESTED: nodes need {nodes.missing()}")
def test_another_environments_program_starts_on_each_node(
    two_nodes: dict[str, str], tmp_path: Path
) -> None:
    """One command in an allocation of two nodes: srun, a launcher on each, two ranks of each."""
    python = theirs.environment_in(tmp_path / "env")
    words = ["--python", python, "--processes", "2", "launcher=torchrun", "launch.nnodes=2"]
    command = shlex.join(theirs.command(*words, "--threads", "2", after=theirs.WORDS))
    environment = two_nodes | {"PYTHONPATH": str(ROOT), "THEIR_FOLDER": str(tmp_path)}
    job = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--mem=1G"]
    printed_by([*job, f"--output={tmp_path}/log", f"--wrap={command}"], tmp_path, environment)
    ranks = theirs.facts(tmp_path)
    assert len(ranks) == 4
    theirs.check_words(ranks, python, "4")

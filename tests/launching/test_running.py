"""What runs in a folder is seen, and stopped, from its files alone."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import psutil
import pytest

from pipeline import status, stop
from pipeline.base.errors import UserError
from pipeline.launching import running
from pipeline.reporting import tables
from pipeline.workflow import hooks
from tests.another_user import another_user
from tests.conftest import ROOT

STAND_IN = """
import os, signal, sys, time
def leave(*_):
    open("saved" + os.environ["RANK"], "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("train: 320 of 640 images  loss 0.9  463 images/s  0:01 left", flush=True)
print("a line of another kind", flush=True)
time.sleep(100)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results, two declared devices, and a module to launch."""
    tmp_path.chmod(0o755)  # pytest's folders are private
    (tmp_path / "results").mkdir()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0,1")
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(folder: Path, gpus: int) -> psutil.Popen:
    """A launched job that has begun to print."""
    words = [sys.executable, "-m", "pipeline.launch", "--gpus", str(gpus), "--log", "log.txt"]
    words += ["--", "-m", "stand_in", "out=results/x/train"]
    job = psutil.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    while not job.stdout.readline().startswith("a line"):
        assert job.poll() is None
    return job


def said(module: str) -> str:
    """What `python -m pipeline.<module>` prints."""
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_status_shows_a_job_and_stop_lets_it_save(folder: Path) -> None:
    assert said("pipeline.status") == "nothing runs in this folder\n"
    assert said("pipeline.stop") == "nothing runs in this folder\n"
    job = launch(folder, 2)
    shown = said("pipeline.status")
    for word in ("stand_in", "results/x/train", "0,1", "463 images/s", "0:01 left"):
        assert word in shown
    assert "another kind" not in shown
    tree = [*job.children(recursive=True), job]
    assert f"stopping stand_in results/x/train (process {job.pid})" in said("pipeline.stop")
    assert job.wait(60) == 75 and not any(process.is_running() for process in tree[:-1])
    assert {path.name for path in folder.glob("saved*")} == {"saved0", "saved1"}
    assert said("pipeline.status") == "nothing runs in this folder\n"


@pytest.mark.slow
def test_a_killed_launcher_is_not_shown(folder: Path) -> None:
    job = launch(folder, 1)
    job.kill()
    job.wait()
    assert list(running.FOLDER.glob("*.json")) and not running.entries()
    assert not list(running.FOLDER.glob("*.json"))


def test_a_job_of_another_machine_that_gives_no_sign_is_named(folder: Path) -> None:
    entry = running.Entry("node7", 1, "pipeline.train", "results/x/train", ["0"], 1, None, 0.0)
    running.FOLDER.mkdir()
    entry.path.write_text(json.dumps(asdict(entry)))
    assert "starting" in said("pipeline.status")
    assert "pipeline.train runs on node7" in said("pipeline.stop")
    long_ago = time.time() - 2 * running.SILENT
    os.utime(entry.path, (long_ago, long_ago))
    assert re.search(r"SILENT for 10:0\d: look at node7", said("pipeline.status"))


def test_a_job_that_was_silent_for_a_day_is_forgotten(folder: Path) -> None:
    entry = running.Entry("node7", 1, "pipeline.train", "results/x/train", ["0"], 1, None, 0.0)
    running.FOLDER.mkdir()
    entry.path.write_text(json.dumps(asdict(entry)))
    long_ago = time.time() - running.FORGOTTEN - 1
    os.utime(entry.path, (long_ago, long_ago))
    assert said("pipeline.stop") == "nothing runs in this folder\n" and not entry.path.exists()


def test_without_locks_only_the_signs_of_life_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with running.Registered(["-m", "pipeline.train"], 1, None) as registered:
        [entry] = running.entries()
        assert entry == registered.entry
        long_ago = time.time() - running.SILENT - 1
        os.utime(entry.path, (long_ago, long_ago))
        assert running.entries() == []


def test_a_job_that_begins_is_stopped_too(folder: Path, pack: Path) -> None:
    words = ["-m", "pipeline.launch", "--", "-m", "pipeline.train", f"data.path={pack}", "out=run"]
    job = psutil.Popen([sys.executable, *words, "experiment=tiny"], cwd=folder)
    while not running.entries():
        assert job.poll() is None
    assert not job.children()  # it has yet to check everything
    assert "stopping pipeline.train run" in said("pipeline.stop")
    # By the signal itself, or, if it had come as far as its ranks meanwhile, by theirs
    assert job.wait(60) in (-signal.SIGTERM, 75) and not running.entries()


def test_a_launcher_that_comes_while_others_end_is_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = socket.gethostname()
    one, two = (
        running.Entry(host, pid, "pipeline.train", "", [], 1, None, 0.0) for pid in (101, 102)
    )
    seen = iter([[one], [one, two], [two], []])
    told: list[int] = []
    monkeypatch.setattr(running, "entries", lambda: next(seen))
    monkeypatch.setattr(stop, "terminate", lambda pid: told.append(pid) is None)
    assert stop.stop_launchers(60) == {one.path: True, two.path: True} and told == [101, 102]


def test_numbers_are_the_last_that_were_measured(tmp_path: Path) -> None:
    scratch = tmp_path / "checkpoints/a"
    scratch.mkdir(parents=True)
    rows = [
        {"step": 1, "images_per_s": 9.0, "gpu_utilisation": 0.97, "peak_memory_gb": 71.04},
        {"step": 2, "images_per_s": 8.6, "gpu_utilisation": None, "peak_memory_gb": 71.04},
    ]
    (scratch / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {"use": "97%", "memory": "71.0 GB", "progress": "step 2 9 images/s"}
    entry = running.Entry("here", 1, "pipeline.train", str(tmp_path), [], 1, None, time.time() - 9)
    assert status.measured(entry) == seen
    assert status.measured(replace(entry, started=time.time() + 9)) == {}  # an earlier job's rows
    for out in (str(tmp_path / "none"), "word=" * 100, ""):
        assert status.measured(replace(entry, out=out)) == {}


def test_a_job_without_a_log_shows_its_metrics(tmp_path: Path) -> None:
    scratch = tmp_path / "checkpoints/a"
    scratch.mkdir(parents=True)
    began = time.time() - 9
    entry = running.Entry("here", 1, "pipeline.train", str(tmp_path), [], 1, None, began)
    assert status.row(replace(entry, host=socket.gethostname()))["progress"] == "starting"
    (scratch / "metrics.jsonl").write_text('{"step": 7, "images_per_s": 12.2}\n')
    assert status.row(replace(entry, host=socket.gethostname()))["progress"] == "step 7 12 images/s"


@pytest.mark.parametrize("width", [1000, 110, 40, 9])
def test_long_lines_fit_the_terminal_as_far_as_they_can(width: int) -> None:
    row = {"host": "node" * 20, "progress": "x" * 200, "gpus": "0,1", "running": "1:00:00"}
    lines = tables.text_table([row], status.COLUMNS, status.TEXT_COLUMNS, width)
    assert "1:00:00" in lines[1] and len(lines[1]) <= max(width, 16)
    assert ("x" * 200 in lines[1]) == (width == 1000)


def test_another_users_job_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with running.Registered(["-m", "pipeline.train"], 1, None):
        monkeypatch.setattr(os, "kill", refuse)
        with pytest.raises(SystemExit) as ended:
            stop.main([])
    assert ended.value.code == 1
    assert f"(process {os.getpid()}) is another user's" in capsys.readouterr().out


@pytest.fixture
def left_behind(folder: Path) -> running.Entry:
    """The file of a job that ended without saying so."""
    entry = running.Entry(socket.gethostname(), 1, "pipeline.train", "x", [], 1, None, 0.0)
    running.FOLDER.mkdir()
    entry.path.write_text(json.dumps(asdict(entry)))
    return entry


def test_a_folder_of_another_user_is_looked_at_and_left_alone(
    folder: Path, left_behind: running.Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    stop.SNAKEMAKE_LOCK.parent.mkdir()
    stop.SNAKEMAKE_LOCK.write_text("{}")
    with another_user(folder, private=False):
        status.main([])
        with pytest.raises(SystemExit) as ended:
            stop.main([])
        with running.Registered(
            ["-m", "x"], 1, None
        ) as registered:  # a job whose files lie elsewhere
            registered.say(gpus=["0"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "nothing runs in this folder\n" * 2
    assert left_behind.path.exists()


def test_a_private_folder_is_named(folder: Path, left_behind: running.Entry) -> None:
    with another_user(running.FOLDER, private=True):
        for main in (status.main, stop.main):
            with pytest.raises(UserError, match="running cannot be read .*: ask the user"):
                main([])


def test_private_files_of_a_job_are_not_a_reason_to_show_nothing(folder: Path) -> None:
    (folder / "results/x/checkpoints/a").mkdir(parents=True)
    for name in ("log.txt", "checkpoints/a/metrics.jsonl"):
        (folder / "results/x" / name).write_text("")
    with running.Registered(["-m", "x", "out=results/x"], 1, Path("results/x/log.txt")) as job:
        assert job.entry.path.stat().st_mode & 0o777 == 0o644
        with another_user(folder / "results/x", private=True):
            assert status.row(job.entry)["progress"] == "starting"


def test_a_log_of_an_earlier_job_is_not_shown(folder: Path) -> None:
    log = folder / "log.txt"
    log.write_text("train: 320 of 640 images  463 images/s  0:01 left\n")
    entry = running.Entry("here", 1, "x", "", [], 1, str(log), time.time() - 60)
    assert status.row(entry)["progress"].startswith("320 of 640 images")
    assert status.row(replace(entry, started=time.time() + 60))["progress"] == "starting"


def test_progress_of_which_no_end_is_known(folder: Path) -> None:
    log = folder / "log.txt"
    log.write_text("prepare: 1,200 sentences  35 sentences/s\nnote: see results/a\n")
    entry = running.Entry("here", 1, "x", "", [], 1, str(log), time.time() - 60)
    assert status.row(entry)["progress"] == "1,200 sentences 35 sentences/s"


def test_clocks_of_machines_may_differ(folder: Path) -> None:
    entry = running.Entry("node7", 1, "x", "", [], 1, None, time.time() + 60)
    assert status.row(entry)["running"] == "0:00"


def test_a_snakemake_on_another_machine_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Machines may share the folder, and its locks; process numbers are each machine's own."""
    told: list[int] = []
    monkeypatch.setattr(stop, "terminate", lambda pid: told.append(pid) is None)
    stop.SNAKEMAKE_LOCK.parent.mkdir()
    held: list[IO[str]] = []
    monkeypatch.setattr(hooks, "_HELD", held)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "node7")
        hooks.hold_folder(stop.SNAKEMAKE_LOCK)
    with pytest.raises(SystemExit) as ended:
        stop.main([])
    held.pop().close()
    assert ended.value.code == 1 and not told
    assert f"snakemake (process {os.getpid()}) runs on node7" in capsys.readouterr().out


def test_a_job_that_snakemake_has_just_started_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launcher takes a second or two until it is known."""
    entry = running.Entry(socket.gethostname(), 101, "pipeline.train", "", [], 1, None, 0.0)
    snakemake = psutil.Popen(["sh", "-c", "sleep 100; sleep 100"], start_new_session=True)
    while not snakemake.children():
        time.sleep(0.01)
    seen = iter([[], [entry], [entry]])

    def entries() -> list[running.Entry]:
        now = next(seen, None)
        if now is None:
            os.killpg(snakemake.pid, signal.SIGKILL)
        return now or []

    told: list[int] = []
    monkeypatch.setattr(running, "entries", entries)
    monkeypatch.setattr(stop, "terminate", lambda pid: told.append(pid) is None)
    start = time.monotonic()
    assert stop.stop_launchers(60, snakemake.pid) == {entry.path: True} and told == [101]
    assert time.monotonic() - start < 30  # it has seen the end of the job
    snakemake.wait()


def test_files_beside_the_jobs_do_not_matter(folder: Path) -> None:
    running.FOLDER.mkdir()
    (running.FOLDER / "half.json").write_text('{"host": ')
    assert running.entries() == []


def test_no_results_folder_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with running.Registered(["-m", "x"], 1, None) as registered:
        registered.say(gpus=["0"])
        registered.touch()
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_job_that_waits_for_its_gpus_is_shown_and_stopped(folder: Path) -> None:
    first = launch(folder, 2)
    words = [sys.executable, "-m", "pipeline.launch", "--gpus", "1", "--", "-m", "stand_in"]
    second = psutil.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    while not second.stdout.readline().startswith("waiting for 1 more"):
        assert second.poll() is None
    assert said("pipeline.status").count("stand_in") == 2
    said("pipeline.stop")
    assert first.wait(60) == 75 and second.wait(10) != 0
    assert said("pipeline.status") == "nothing runs in this folder\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in which each workflow goes on with the training of the last one."""
    from tests.workflow.project import copy_code

    return copy_code(tmp_path_factory.mktemp("workflow") / "project")


class Workflow:
    """Snakemake that trains, in its own session, and all processes of its job."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.before = self.files("step-*.pt")
        rows = self.rows()
        words = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1"]
        words += ["--config", "experiment=tiny", "set=train.images=6400000", "--", "train"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path}
        self.engine = psutil.Popen(
            words,
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while self.rows() == rows:
            assert self.engine.poll() is None, self.engine.communicate()[0]
            time.sleep(0.05)
        self.tree = self.engine.children(recursive=True)

    def files(self, pattern: str) -> list[Path]:
        """What lies in the training's folder of checkpoints."""
        return list(self.project.glob(f"results/tiny/*/train/checkpoints/*/{pattern}"))

    def rows(self) -> list[str]:
        """The rows of the training's curve so far."""
        return [row for file in self.files("metrics.jsonl") for row in file.read_text().split()]

    def check_saved_and_gone(self) -> None:
        """Everything ends within 30 s, and the training has saved."""
        output = self.engine.communicate(timeout=600)[0].decode()
        assert self.engine.returncode != 0 and "stopped: saved at step" in output
        assert psutil.wait_procs(self.tree, timeout=60)[1] == []
        assert set(self.files("step-*.pt")) - set(self.before)


@pytest.mark.slow
def test_stop_ends_an_engine_and_its_jobs(project: Path) -> None:
    workflow = Workflow(project)
    stop = [sys.executable, "-m", "pipeline.stop"]
    done = subprocess.run(
        stop, cwd=workflow.project, env=workflow.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"snakemake (process {workflow.engine.pid}) starts nothing more" in done.stdout
    assert "stopping pipeline.train results/tiny" in done.stdout
    workflow.check_saved_and_gone()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_the_job_save(
    project: Path, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal does, or a kill of a process group."""
    workflow = Workflow(project)
    os.killpg(workflow.engine.pid, number)
    workflow.check_saved_and_gone()

"""Processes, threads and devices of a step; signals; nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline import dag, execution, gpus, launch, sharing
from pipeline.errors import EXIT_RESUMABLE, UserError
from tests.conftest import ROOT, resolved


def test_as_many_processes_as_gpus() -> None:
    assert sharing.processes(4, "standalone", "auto", ["0", "1", "2", "3"]) == 4
    assert sharing.processes(2, "standalone", "auto", ["0", "1", "2", "3"]) == 2
    assert sharing.processes(4, "none", "auto", ["0", "1", "2", "3"]) == 1


def test_fewer_devices_than_ranks_is_an_error() -> None:
    with pytest.raises(UserError, match=r"4 GPUs are asked for but 2 visible .* gpu=2"):
        sharing.processes(4, "standalone", "auto", ["0", "1"])


def test_no_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cpu_cores", lambda: 6)
    assert sharing.processes(4, "standalone", "auto", []) == 4
    assert sharing.processes(8, "standalone", "auto", []) == 4  # six cores: a power of two
    assert sharing.processes(0, "standalone", "auto", []) == 1
    assert sharing.processes(3, "standalone", "cpu", ["0"]) == 3
    with pytest.raises(UserError, match="no GPU is visible"):
        sharing.processes(1, "standalone", "cuda", [])


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,0", ["2", "0"]),
        ("", []),
        ("0, 1", ["0", "1"]),
        ("0,7,1", ["0"]),  # as CUDA: an id that does not exist ends the list
        ("-1", []),
        ("GPU-1234,MIG-5", ["GPU-1234", "MIG-5"]),
    ],
)
def test_visible_devices(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(gpus, "device_count", lambda: 4)
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert gpus.visible(environment) == expected


def test_a_job_that_this_machine_cannot_run_stops_before_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = SimpleNamespace(name="train")
    jobs = [SimpleNamespace(rule=rule, resources={"gpu": 4})]
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    with pytest.raises(SystemExit):
        dag.check_devices(jobs, resolved())
    assert "rule train: 4 GPUs are asked for but 2 visible" in capsys.readouterr().err
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1", "2", "3"])
    dag.check_devices(jobs, resolved())
    with pytest.raises(SystemExit):
        dag.check_devices(jobs, resolved("train.batch=2050"))
    assert "cannot be divided over 4 processes" in capsys.readouterr().err


def test_a_torch_that_cannot_use_the_gpus_is_named() -> None:
    if torch.cuda.device_count():
        pytest.skip("this torch can use the GPUs")
    with pytest.raises(UserError, match="GPUs 0,1 are visible but torch .* cannot use them"):
        launch.check_torch(["0", "1"], "auto")
    launch.check_torch([], "auto")
    launch.check_torch(["0"], "cpu")


def test_without_a_compiler_compile_is_off_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = torch.nn.Linear(2, 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    for setting in ("auto", True):
        assert execution.prepare(net, torch.device("cpu"), setting, True) is net
        assert capsys.readouterr().out.startswith("torch.compile is off: no C++ compiler")
    assert execution.prepare(net, torch.device("cpu"), False, True) is net
    assert capsys.readouterr().out == ""


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cpu_cores", lambda: 16)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert launch.child_environment(16, 4, "auto")["OMP_NUM_THREADS"] == "4"
    assert launch.child_environment(64, 4, "auto")["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("MKL_NUM_THREADS", "16")  # as the engine exports it
    assert launch.child_environment(16, 4, "auto")["MKL_NUM_THREADS"] == "4"
    assert launch.child_environment(2, 4, "auto")["OMP_NUM_THREADS"] == "1"
    assert launch.child_environment(2, 4, 7)["OMP_NUM_THREADS"] == "7"
    assert launch.child_environment(2, 1, "auto")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_torchrun_for_several_python_for_one() -> None:
    assert launch.command(["-m", "x"], 1) == [sys.executable, "-m", "x"]
    words = launch.command(["-m", "x"], 3)
    assert words[-3:] == ["--nproc-per-node=3", "-m", "x"] and "--standalone" in words


CHILD = """
import os, pathlib, signal, sys, time
def leave(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("started", flush=True)
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""
PARENT = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from pipeline import launch
sys.exit(launch.supervise([sys.executable, *sys.argv[2:]], os.environ, Path(sys.argv[1], "log")))
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen, int]:
    """A launcher that supervises a child which saves when told to stop; and the child's pid."""
    command = [sys.executable, "-c", PARENT, str(tmp_path), "-c", CHILD, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    pid = tmp_path / "pid"
    for _ in range(1000):
        if pid.exists() and pid.read_text():
            return parent, int(pid.read_text())
        time.sleep(0.01)
    raise AssertionError("the child did not start")


def gone(pid: int) -> bool:
    """Whether a process is dead within 5 s."""
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_step_save(tmp_path: Path, number: signal.Signals) -> None:
    parent, child = start(tmp_path)
    parent.send_signal(number)
    assert parent.wait(20) == EXIT_RESUMABLE
    assert (tmp_path / "saved").exists() and gone(child)
    assert (tmp_path / "log").read_text() == "started\n"


def test_a_killed_launcher_stops_the_step(tmp_path: Path) -> None:
    parent, child = start(tmp_path)
    parent.kill()
    parent.wait()
    assert gone(child) and (tmp_path / "saved").exists()


def test_the_step_outlives_whoever_read_its_output(tmp_path: Path) -> None:
    code = "import time\nfor i in range(40): print('x' * 4000, flush=True); time.sleep(0.01)"
    command = [sys.executable, "-c", PARENT, str(tmp_path), "-c", code]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.close()
    assert parent.wait(30) == 0
    assert (tmp_path / "log").stat().st_size == 40 * 4001


def test_the_status_of_the_step_is_ours(tmp_path: Path) -> None:
    for status in (0, 2, 17):
        words = [sys.executable, "-c", f"raise SystemExit({status})"]
        command = [sys.executable, "-c", PARENT, str(tmp_path), *words[1:]]
        assert subprocess.run(command, cwd=ROOT).returncode == status


@pytest.mark.parametrize(
    ("rank", "error", "printed"),
    [("0", "UserError", True), ("3", "UserError", False), ("3", "OneRankError", True)],
)
def test_who_prints_an_error(rank: str, error: str, printed: bool) -> None:
    code = f"""
from pipeline.errors import *
def step(argv):
    raise {error}("no")
run_main(step)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "RANK": rank},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == ("error: no\n" if printed else "")


def test_ctrl_c_before_the_ranks_is_no_traceback() -> None:
    code = "from pipeline.errors import *\ndef step(argv): raise KeyboardInterrupt\nrun_main(step)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_launcher_says_what_it_wants_to_start() -> None:
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "1", "--", "pipeline.train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "-m MODULE" in done.stderr and "Traceback" not in done.stderr


def test_bad_words_end_before_any_rank(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--"]
    command += ["-m", "pipeline.train", "experiment=tiny", "train.lrr=1", f"data.path={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown key train.lrr; did you mean train.lr?"

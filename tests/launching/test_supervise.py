"""Signals to a job, its output, and that nobody of it is left behind."""

import functools
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.base.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE
from pipeline.base.processes import die_with_parent
from tests.conftest import ROOT

CHILD = """
import os, pathlib, signal, sys, time
def leave(*_):
    time.sleep(0.5)
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
from pipeline.launching.supervise import supervise
sys.exit(supervise([sys.executable, *sys.argv[2:]], os.environ, Path(sys.argv[1], "log")))
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen, int]:
    """A launcher that supervises a child which saves when told to stop; and the child's pid."""
    command = [sys.executable, "-c", PARENT, str(tmp_path), "-c", CHILD, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    return parent, started(tmp_path)


def started(tmp_path: Path) -> int:
    """The pid of the child, once it has started."""
    pid = tmp_path / "pid"
    for _ in range(1000):
        if pid.exists() and pid.read_text():
            return int(pid.read_text())
        time.sleep(0.01)
    raise AssertionError("the child did not start")


def gone(pid: int, seconds: int = 5) -> bool:
    """Whether a process is dead within some seconds."""
    for _ in range(100 * seconds):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGUSR1], [signal.SIGINT, signal.SIGTERM]],
)
def test_a_signal_lets_the_step_save(tmp_path: Path, numbers: list[signal.Signals]) -> None:
    parent, child = start(tmp_path)
    for number in numbers:
        parent.send_signal(number)
        time.sleep(0.1)
    assert parent.wait(600) == EXIT_RESUMABLE
    assert (tmp_path / "saved").exists() and gone(child)
    assert (tmp_path / "log").read_text() == "started\n"


def test_a_terminal_that_is_closed_lets_the_step_save(tmp_path: Path) -> None:
    """Its shell tells the job, and so does the kernel."""
    shell, terminal = pty.fork()
    if not shell:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup, too
        os.chdir(ROOT)
        os.execlp("bash", "bash", "--norc", "-i")
    words = [sys.executable, "-c", PARENT, str(tmp_path), "-c", CHILD, str(tmp_path)]
    os.write(terminal, f"{shlex.join(words)}\n".encode())
    child = started(tmp_path)
    os.close(terminal)
    os.waitpid(shell, 0)
    assert gone(child) and (tmp_path / "saved").exists()


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
    assert parent.wait(600) == 0
    assert (tmp_path / "log").stat().st_size == 40 * 4001


def test_the_status_of_the_step_is_ours(tmp_path: Path) -> None:
    for status in (0, 2, 17):
        words = [sys.executable, "-c", f"raise SystemExit({status})"]
        command = [sys.executable, "-c", PARENT, str(tmp_path), *words[1:]]
        assert subprocess.run(command, cwd=ROOT).returncode == status


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """nohup has a job outlive the terminal."""
    code = "import time; print('started', flush=True); time.sleep(1.5); print('ended')"
    command = ["nohup", sys.executable, "-c", PARENT, str(tmp_path), "-c", code]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    parent.send_signal(signal.SIGHUP)
    assert parent.communicate(timeout=600)[0] == "ended\n" and parent.returncode == 0


def test_a_log_that_cannot_be_written_does_not_stop_the_job(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    code = "for i in range(40): print('x' * 4000)"
    command = [sys.executable, "-c", PARENT, str(tmp_path), "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == 0 and done.stdout.count(b"x") == 40 * 4000
    assert done.stdout.count(b"the log is not written any more: No space left on device") == 1


def test_a_killed_job_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), "-c"]
    command.append("import os; os.kill(os.getpid(), 9)")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 137 and "error: the job was killed by SIGKILL" in done.stderr


def test_a_parent_that_was_gone_before_the_request_ends_the_child_at_once() -> None:
    too_late = functools.partial(die_with_parent, signal.SIGTERM, parent=1)
    child = subprocess.run(["sleep", "20"], preexec_fn=too_late, timeout=10)
    assert child.returncode == -signal.SIGTERM


# --- whole trees: launcher, torchrun, ranks -------------------------------------------------------

STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "rank" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(100)
"""


ENDING = """
import os, pathlib, signal, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
pathlib.Path(sys.argv[1], "rank" + os.environ["RANK"]).touch()
while not ended:
    time.sleep(0.05)
sys.exit(int(sys.argv[2 + int(os.environ["RANK"])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "status"), [(("0", "0"), 0), (("0", "75"), EXIT_RESUMABLE)])
def test_a_signal_to_ranks_at_their_very_end_leaves_their_success(
    tmp_path: Path, ends: tuple[str, str], status: int
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    words = ["-m", "pipeline.launching.torchrun", "--standalone", "--nproc-per-node=2"]
    words += [str(tmp_path / "ending.py"), str(tmp_path), *ends]
    (temporary := tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    agent = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment)
    until = time.monotonic() + 600
    while not all((tmp_path / f"rank{k}").exists() for k in (0, 1)):
        assert time.monotonic() < until
        time.sleep(0.05)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(600) == status
    assert not list(temporary.iterdir())  # torch would leave a folder for logs behind


FIRST_ENDS = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1], "agent" + os.environ["RANK"]).write_text(str(os.getppid()))
if os.environ["RANK"] == "1":
    signal.pause()
"""


@pytest.mark.slow
def test_a_signal_to_a_node_that_waits_for_another_leaves_its_success(tmp_path: Path) -> None:
    """A node's ranks may end before those of another; the time limit comes to both."""
    (tmp_path / "first_ends.py").write_text(FIRST_ENDS)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "pipeline.launching.torchrun", "--nnodes=2", "--rdzv-id=one"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--nproc-per-node=1"]
    words += [str(tmp_path / "first_ends.py"), str(tmp_path)]
    both = [psutil.Popen(words, cwd=ROOT) for _ in range(2)]
    files = [tmp_path / f"agent{rank}" for rank in range(2)]
    until = time.monotonic() + 600
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < until
        time.sleep(0.05)
    first, second = sorted(both, key=lambda agent: str(agent.pid) != files[0].read_text())
    while first.children():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1)  # it looks for their end each 0.1 s
    for agent in (first, second):
        agent.send_signal(signal.SIGTERM)
    assert [first.wait(600), second.wait(30)] == [0, 0]


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, psutil.Process]:
    """A launcher, its torchrun and two ranks of another project's module that ignore SIGTERM."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "PIPELINE_GPU_IDS": "0,1",
        "PIPELINE_LEASE_DIR": str(tmp_path / "leases"),
    }
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--", "-m", "stubborn"]
    launcher = psutil.Popen([*command, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)
    files = [tmp_path / f"rank{number}" for number in range(2)]
    for _ in range(3000):
        if all(file.exists() and file.read_text() for file in files):
            break
        time.sleep(0.01)
    ranks = [psutil.Process(int(file.read_text())) for file in files]
    found = {"launcher": launcher, "torchrun": ranks[0].parent(), "rank": ranks[0]}
    return found | {"other rank": ranks[1]}


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tree: dict[str, psutil.Process]) -> None:
    tree["launcher"].send_signal(signal.SIGINT)
    time.sleep(1)
    assert tree["rank"].is_running() and tree["launcher"].is_running()  # as long as it takes
    tree["launcher"].send_signal(signal.SIGINT)
    assert tree["launcher"].wait(60) == EXIT_INTERRUPTED
    assert all(gone(process.pid) for process in tree.values())


@pytest.mark.parametrize("victim", ["torchrun", pytest.param("launcher", marks=pytest.mark.slow)])
def test_a_kill_of_a_part_leaves_no_orphan(tree: dict[str, psutil.Process], victim: str) -> None:
    """Even of ranks that know nothing of this project and do not listen."""
    tree[victim].kill()
    assert all(gone(process.pid, 40) for process in tree.values())


SAVES = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def leave(*_):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
(folder / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "before"),
    [
        ("snakemake", ""),
        ("shell", ""),
        pytest.param("snakemake", "nohup ", marks=pytest.mark.slow),
        pytest.param("shell", "nohup ", marks=pytest.mark.slow),
    ],
)
def test_in_an_allocation_a_launcher_without_parents_saves_and_leaves(
    tmp_path: Path, victim: str, before: str
) -> None:
    """A killed Snakemake leaves the shell of its rule; nohup asks that the job stays."""
    (tmp_path / "saves.py").write_text(SAVES)
    (tmp_path / "snakemake").write_text(
        "import subprocess, sys\nsubprocess.run(['bash', '-c', sys.argv[1]])"
    )
    launch = f"{before}{sys.executable} -m pipeline.launch --gpus 0 -- -m saves {tmp_path}; true"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "SLURM_JOB_ID": "1"}
    words = [sys.executable, str(tmp_path / "snakemake"), launch]
    snakemake = psutil.Popen(
        words,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests under nohup, too
    )
    until = time.monotonic() + 600
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    shell = snakemake.children()[0]
    started = shell.children(recursive=True)
    (snakemake if victim == "snakemake" else shell).kill()
    left = psutil.wait_procs(started, timeout=4 if before else 60)[1]
    assert set(left) == set(started if before else [])
    assert (tmp_path / "saved").exists() != bool(before)
    for process in left:
        process.kill()

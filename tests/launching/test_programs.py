"""Another project's program in its own environment: its words, its stops, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.elastic.utils import macros

from pipeline import launch
from pipeline.base.errors import UserError
from pipeline.launching import agent, launchers, programs, submit
from pipeline.launching.programs import Program
from tests.conftest import ROOT

THEIRS = """
import json, os, pathlib, signal, sys, time
rank, folder = os.environ.get("RANK", "alone"), pathlib.Path(os.environ["THEIR_FOLDER"])
ends = os.environ.get("THEIR_STATUS")
if ends:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(ends)))
facts = {
    "words": [os.fsencode(word).hex() for word in sys.argv[1:]],
    "prefix": sys.prefix,
    "path": sys.path,
    "size": os.environ.get("WORLD_SIZE"),
    "stdin": sys.stdin.readline(),
    "null": os.path.samestat(os.fstat(0), os.stat(os.devnull)),
    "pid": os.getpid(),
}
(folder / f"{rank}.new").write_text(json.dumps(facts))
(folder / f"{rank}.new").rename(folder / f"{rank}.json")
if "wait" in sys.argv:
    time.sleep(100)
"""
# What a shell, argparse, torchrun or a template would change
WORDS = ["+pretrain=mse", "--", "-m", "--no", "--nproc-per-node=7", "a  b", "it's", '"', "\\", "*"]
WORDS += [
    "$x $$ ${local_rank} $local_rank",
    "$(id)",
    "Ærø",
    "",
    "=",
    "--a=b=c",
    "%s",
    "\udcff",
    "--",
]


@pytest.fixture(scope="module")
def their_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of their environment."""
    return environment_in(tmp_path_factory.mktemp("theirs") / "an env")


def environment_in(folder: Path) -> str:
    """An environment with this one's torch and a package that only it has; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    (site / "theirs").mkdir()
    (site / "theirs/__init__.py").touch()
    (site / "theirs/program.py").write_text(THEIRS)
    return str(folder / "bin/python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is neither project's, in which ranks leave their facts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("THEIR_FOLDER", str(tmp_path))
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    return tmp_path


def command(*before: str, after: list[str], module: str = "theirs.program") -> list[str]:
    """The launcher's command for their program."""
    return [sys.executable, "-m", "pipeline.launch", *before, "--", "-m", module, *after]


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What each rank has said of itself."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def refused(words: list[str]) -> str:
    """The one sentence with which the launcher refuses a command."""
    with pytest.raises(UserError) as error:
        launch.main(words[3:])
    assert "\n" not in str(error.value)
    return str(error.value)


# --- started ------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["standalone", pytest.param("torchrun", marks=SLOW), "submitit_local", "none"]
)
def test_a_program_of_another_environment_gets_its_words(
    folder: Path, their_python: str, name: str
) -> None:
    num = [] if name == "none" else ["--processes", "2"]
    words = command("--python", their_python, *num, f"launcher={name}", after=WORDS)
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.PIPE)
    assert done.returncode == 0, done
    ranks = facts(folder)
    assert list(ranks) == (["alone"] if name == "none" else ["0", "1"])
    check_words(ranks, their_python, None if name == "none" else "2")
    assert all(rank["null"] for rank in ranks.values())


def check_words(ranks: dict[str, dict[str, Any]], python: str, size: str | None) -> None:
    """Each of `size` ranks has got WORDS, in the environment of `python`."""
    for rank in ranks.values():
        assert [os.fsdecode(bytes.fromhex(word)) for word in rank["words"]] == WORDS
        assert rank["prefix"] == str(Path(python).parents[1]) != sys.prefix
        assert rank["size"] == size
        assert str(ROOT) not in rank["path"]  # though it is in PYTHONPATH


@given(st.lists(st.text(st.characters(exclude_characters="\0"))))
def test_torchrun_hands_on_any_words(words: list[str]) -> None:
    started: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "run", lambda args: started.append(args.training_script_args))
        agent.run_ranks(["--standalone", "--nproc-per-node=2", "-m", "x.y", *words])
    assert [macros.substitute(given, "3") for given in started] == [words]


def test_a_slurm_job_starts_their_interpreter(
    folder: Path, their_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm itself is in test_cluster; here, what is handed to submitit."""
    tasks: list[submit.Task] = []
    monkeypatch.setattr(submit, "submit", lambda task, *_: len(tasks.append(task) or []))
    monkeypatch.setattr(submit, "executor", lambda *_: None)
    program = Program(["-m", "theirs.program", *WORDS], their_python, False, False)
    job = launch.Job(program, ["launcher=submitit_slurm"], 0, 2, 2)
    assert launch.run(job, None) == 0
    [task] = tasks
    assert (task.python, task.module, task.reads_stdin) == (their_python, program.module, False)
    assert task.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standalone", pytest.param("submitit_local", marks=SLOW), "none"])
def test_stdin_reaches_a_program_that_is_to_have_it(folder: Path, name: str) -> None:
    (folder / "mine.py").write_text(THEIRS)
    words = command("--stdin", f"launcher={name}", module="mine", after=[])
    done = subprocess.run(words, capture_output=True, text=True, input="typed\n")
    assert done.returncode == 0, done
    assert [rank["stdin"] for rank in facts(folder).values()] == ["typed\n"]


def test_each_node_starts_the_same_program(their_python: str) -> None:
    program = launch.program_of(["-m", "x", "a b"], their_python, True)
    options = program.options()
    assert (
        launch.program_of(program.module, options[options.index("--python") + 1], True) == program
    )
    assert launch.program_of(["-m", "pipeline.train"], None, False).options() == []
    assert not launch.program_of(["-m", "pipeline.train"], their_python, False).is_step


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("no/such/python", "--python=no/such/python is not an executable file"),
        ("/etc/passwd", "--python=/etc/passwd is not an executable file"),
        ("/bin/true", r"does not answer as a Python 3 does \(exit status 0\)"),
    ],
)
def test_what_is_not_an_interpreter_is_told(folder: Path, python: str, says: str) -> None:
    assert re.search(says, refused(command("--python", python, after=[])))


def test_a_refusal_is_one_line_of_the_launcher(folder: Path) -> None:
    words = command("--python", "/bin/true", after=[])
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --python=/bin/true") and done.stderr.count("\n") == 1


def test_an_environment_without_torch_is_told(folder: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    said = refused(command("--python", "bare/bin/python", after=[], module="timeit"))
    assert "bare/bin/python (Python 3." in said and "cannot import torch (ModuleNotFound" in said


@pytest.mark.parametrize("module", ["theirs.trian", "thiers.train", "theirs", "theirs.program.x"])
def test_a_module_that_is_not_there_is_told(folder: Path, their_python: str, module: str) -> None:
    with pytest.raises(UserError, match=f"finds no module {module} that it could run"):
        programs.check(Program(["-m", module], their_python, False), needs_torch=False)


def test_a_module_of_this_interpreter_that_is_not_there_is_told(folder: Path) -> None:
    said = refused(command(after=[], module="theirs.program"))
    assert f"{sys.executable} finds no module theirs.program" in said and "--python" in said


def test_a_package_that_cannot_be_imported_shows_its_own_error(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken/__init__.py").write_text("import no_such_library")
    (folder / "broken/run.py").touch()
    program = Program(["-m", "broken.run"], is_step=False)
    assert programs.looked_at(program, False)[0]["module"] is True


@pytest.mark.parametrize(
    ("before", "module", "says"),
    [
        (["--processes", "0"], "timeit", "--processes=0 starts nothing"),
        (["--processes", "2"], "pipeline.train", "pipeline.train has a process per GPU, --gpus N"),
        (["--processes", "2", "launcher=none"], "timeit", "one process, not --processes=2"),
        (["--stdin", "launcher=submitit_slurm"], "timeit", "--stdin cannot reach a Slurm job"),
        (["--gpus", "3"], "timeit", "3 GPUs .* 0 visible .*: pass --gpus 0 --processes 3 for as"),
    ],
)
def test_what_a_launcher_cannot_do_is_told(
    monkeypatch: pytest.MonkeyPatch, before: list[str], module: str, says: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=says):
        launch.main([*before, "--", "-m", module])


@pytest.mark.parametrize(
    ("module", "wanted", "launcher", "says"),
    [
        ("lcm.train", 0, "standalone", "lcm.train .* in one process (several: --processes N)"),
        ("pipeline.select", 1, "standalone", "(several: --gpus N, .* runtime.gpus.sample=N)"),
        ("pipeline.train", 1, "none", "pipeline.train runs on the CPU in one process"),
        ("pipeline.train", 4, "standalone", "pipeline.train runs on the CPU in one process"),
    ],
)
def test_one_process_on_the_cpu_says_how_to_have_several(
    capsys: pytest.CaptureFixture[str], module: str, wanted: int, launcher: str, says: str
) -> None:
    job = launch.Job(launch.program_of(["-m", module], None, False), [], wanted, 2)
    launch.announce(job, 1, [], launchers.LAUNCHERS[launcher])
    pattern = says.replace("(", r"\(").replace(")", r"\)") + "$"
    assert re.search(pattern, capsys.readouterr().out.strip())


# --- stopped ------------------------------------------------------------------------------------


def started(folder: Path, before: list[str], status: str, num_ranks: int) -> psutil.Popen:
    """A launcher whose ranks wait, and end with `status` on SIGTERM, or by it if that is empty."""
    (folder / "mine.py").write_text(THEIRS)
    words = command(*before, module="mine", after=["wait"])
    environment = os.environ | {"THEIR_STATUS": status}
    job = psutil.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 300
    while len(facts(folder)) < num_ranks:
        assert job.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return job


UNKNOWN = r"stopped by {}: nothing says that mine saved its state \(exit status {}\)\n"
TWO, SUBMITIT = ["--processes", "2"], "launcher=submitit_local"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "number", "status", "ends", "says"),
    [
        (TWO, signal.SIGTERM, "", 143, UNKNOWN.format("SIGTERM", 143)),
        (TWO, signal.SIGTERM, "75", 75, "mine says that it can go on"),
        (["launcher=none"], signal.SIGINT, "", 130, UNKNOWN.format("SIGINT", 143)),
        ([*TWO, SUBMITIT], signal.SIGTERM, "", 143, "stopped by SIGTERM: nothing"),
    ],
)
def test_a_stop_says_whether_the_program_said_that_it_saved(
    folder: Path, before: list[str], number: signal.Signals, status: str, ends: int, says: str
) -> None:
    job = started(folder, before, status, 1 if "launcher=none" in before else 2)
    job.send_signal(number)
    printed = job.communicate(timeout=300)[0].decode()
    assert job.returncode == ends, printed
    assert re.search(says, printed) and "Traceback" not in printed
    assert "checkpoint" not in printed and "saves" not in printed


@pytest.mark.parametrize(
    ("status", "number", "ends", "says"),
    [
        (143, signal.SIGTERM, 143, UNKNOWN.format("SIGTERM", 143)),
        (3, signal.SIGINT, 130, UNKNOWN.format("SIGINT", 3)),
        (75, signal.SIGINT, 75, "stopped by SIGINT: mine says that it can go on"),
        (0, signal.SIGTERM, 0, "stopped by SIGTERM: mine ended with exit status 0"),
    ],
)
def test_the_status_of_a_program_that_was_stopped(
    capsys: pytest.CaptureFixture[str], status: int, number: signal.Signals, ends: int, says: str
) -> None:
    mine = Program(["-m", "mine"], is_step=False)
    assert mine.status_after_stop(status, number) == ends
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.slow
def test_a_killed_rank_of_others_promises_no_checkpoint(folder: Path) -> None:
    job = started(folder, TWO, "", 2)
    os.kill(facts(folder)["1"]["pid"], signal.SIGKILL)
    printed = job.communicate(timeout=300)[0].decode()
    assert job.returncode == 137
    assert re.search(
        r"error: rank 1 \(process \d+\) was killed by SIGKILL: all have ended\n", printed
    )


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((75, 143), 75), ((75, 137), 137), ((0, 75), 75), ((0, 143), 143), ((0, 0), 0)],
)
def test_ranks_that_need_not_save_do_not_hide_one_that_did(
    statuses: tuple[int, ...], status: int
) -> None:
    assert programs.worst(statuses) == status
    assert programs.worst(reversed(statuses)) == status


def test_a_step_that_a_signal_stopped_can_go_on() -> None:
    step = Program(["-m", "pipeline.train"])
    assert [step.status_after_stop(status, signal.SIGINT) for status in (0, 75, 143)] == [0, 75, 75]

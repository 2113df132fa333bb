"""The brief form of a job's output: errors whole, progress in place or seldom."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.progress import Progress, is_progress
from pipeline.launching import console
from tests.conftest import ROOT

JOB = """
from pipeline.base.progress import Progress
progress = Progress("train", 300, 0)
print("images: memory-mapped")
for images in (100, 200, 300):
    progress.show(images, f"loss {1 / images:.4f}")
print("Traceback (most recent call last):\\n  images of 7 images/s")
print("an end without its newline", end="")
"""
STAYS = ["images: memory-mapped", "Traceback (most recent call last):", "  images of 7 images/s"]
STAYS.append("an end without its newline")


@given(
    st.sampled_from(["train", "real images, part B", "downsample"]),
    st.integers(0, 10**9),
    st.none() | st.integers(1, 10**9),
    st.sampled_from(["", "loss 0.3", "loss nan  grad 3e+02"]),
    st.sampled_from(["images", "pieces", "sentences"]),
)
def test_every_line_of_progress_is_known(
    step: str, done: int, total: int | None, note: str, unit: str
) -> None:
    line = Progress(step, total, 0, unit=unit).line(done, note)
    assert is_progress(f"{step}: {line}") and f" {unit}/s" in line


@pytest.mark.parametrize(
    "line",
    [
        "downsample: 2500 images of 10 classes, 0 left out, in 6.1 s (410 images/s): results/x",
        "sample: 1,000 images in 54 s, results/smoke",
        "error: train.images=3 images  are too few: 7 images/s",
        "",
    ],
)
def test_results_and_errors_are_not_progress(line: str) -> None:
    assert not is_progress(line)


def supervised(folder: Path, **settings: int) -> subprocess.Popen:
    """The launcher's supervision of JOB in the brief form."""
    (folder / "job.py").write_text(JOB)
    code = "import os, sys; from pathlib import Path; from pipeline.launching.supervise import *; "
    code += "sys.exit(supervise([sys.executable, *sys.argv[2:]], os.environ, Path(sys.argv[1])))"
    words = [sys.executable, "-c", code, str(folder / "log"), str(folder / "job.py")]
    environment = os.environ | {console.VARIABLE: console.BRIEF, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=ROOT, env=environment, **settings)


def test_without_a_terminal_progress_is_seldom_and_the_log_has_all(tmp_path: Path) -> None:
    printed = supervised(tmp_path, stdout=subprocess.PIPE).communicate(timeout=600)[0].decode()
    assert printed.splitlines() == STAYS
    log = (tmp_path / "log").read_text().splitlines()
    assert [line for line in log if not is_progress(line)] == STAYS
    assert sum(map(is_progress, log)) == 3


def test_on_a_terminal_progress_is_written_over(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    run = supervised(tmp_path, stdout=theirs)
    os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 65536):
            printed += chunk
    except OSError:  # of Linux, at the end of a terminal
        pass
    assert run.wait(600) == 0
    lines = printed.decode().replace("\r\n", "\n").split("\n")
    assert [line.rpartition("\033[K")[2] for line in lines] == [*STAYS, ""]
    assert lines[1].count("\033[K") == 4 and "300 of 300 images" in lines[1]


@pytest.mark.slow
def test_a_step_ends_with_its_time(tmp_path: Path) -> None:
    words = ["-m", "pipeline.launch", "--log", "log", "--", "-m", "pipeline.downsample"]
    words += ["experiment=tiny", f"data.pack_dir={tmp_path}", f"out={tmp_path}/record.json"]
    words[3] = str(tmp_path / "log")
    environment = os.environ | {console.VARIABLE: console.BRIEF}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("downsample: ") and last.startswith("downsample: done in 0:")
    assert "$ " not in done.stdout
    assert (tmp_path / "log").read_text().startswith(f"$ {sys.executable} -m pipeline.downsample")

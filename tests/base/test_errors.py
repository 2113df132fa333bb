"""Exit statuses of a step: nothing that comes after its work changes them."""

import subprocess
import sys

import pytest

from pipeline.base.errors import EXIT_RESUMABLE, EXIT_USER_ERROR
from tests.conftest import ROOT

LATE = """
import atexit, os, signal
from pipeline.base.errors import Stopped, UserError, run_main
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{signal}):
        kill(pid, number)
late = Late()  # ends with the interpreter, which has given up its handlers by then
signal.signal(signal.{signal}, lambda *_: None)
def step(words):
    {step}
run_main(step)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise UserError('no')", EXIT_USER_ERROR),
        ("raise Stopped('saved')", EXIT_RESUMABLE),
    ],
)
def test_a_signal_at_the_very_end(number: str, step: str, status: int) -> None:
    script = LATE.format(signal=number, step=step)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr

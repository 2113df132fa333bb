"""Run a job's processes and answer for them: signals passed on, output copied, nobody left behind.

The job runs in a session of its own. This process is the subreaper of all its descendants, so that
ranks whose torchrun was killed come to it and are ended; where this process is killed itself, the
kernel sends the job SIGTERM.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from pipeline.errors import EXIT_RESUMABLE
from pipeline.prctl import die_with_parent

PR_SET_CHILD_SUBREAPER = 36  # Linux prctl(2)
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def supervise(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    descriptors: tuple[int, ...] = (),
    sign: Path | None = None,
) -> int:
    """Run a command; returns its exit status, 75 where a signal stopped it.

    A first signal of HANDLED is passed on as SIGTERM, so that the ranks save and leave; a second
    one kills. The command inherits `descriptors`, which live as long as it does. The file `sign`
    is touched while the command prints.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    stream = opened(log) if log else None
    child = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_us,
        pass_fds=descriptors,
    )
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM if len(signals) == 1 else signal.SIGKILL)

    for number in HANDLED:
        signal.signal(number, forward)
    assert child.stdout is not None
    copying = threading.Thread(target=relay, args=(child.stdout, stream, sign))
    copying.start()
    status = child.wait()
    end_descendants()  # they hold the other end of what is copied
    copying.join()
    if signals and status != 0:
        return EXIT_RESUMABLE
    return status if status >= 0 else 128 - status


def opened(log: Path) -> IO[bytes]:
    """A new log; its folder is made where it is absent."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("wb")


def _die_with_us() -> None:
    """In the child: SIGTERM when this launcher dies in any way, so that ranks save and leave."""
    die_with_parent(signal.SIGTERM)


def relay(source: IO[bytes], log: IO[bytes] | None, sign: Path | None) -> None:
    """Copy what the job prints to our stdout and the log until all of it has closed its end."""
    while chunk := os.read(source.fileno(), 65536):
        if log:
            log.write(chunk)
            log.flush()
        if sign:
            with suppress(OSError):
                os.utime(sign)
        show(chunk)


def show(chunk: bytes) -> None:
    """Write to stdout; where its reader has gone, what is left of the output goes nowhere."""
    try:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def descendants() -> list[int]:
    """Process ids of our children, those that came to us from ended parents included."""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += map(int, (thread / "children").read_text().split())
    return found


def end_descendants() -> None:
    """Kill all that is left below this process, and wait for it."""
    while children := descendants():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)

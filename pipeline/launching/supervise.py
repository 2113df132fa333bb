"""Run a job's processes and answer for them: signals passed on, output copied, nobody left behind.

The job runs in a separate session. This process is the subreaper of all its descendants, so that
ranks whose torchrun was killed come to it and are ended; if this process is killed itself, the
kernel sends the job SIGTERM.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from pipeline.base.processes import (
    become_subreaper,
    die_with_parent,
    end_descendants,
    exit_status,
    handle_stop_signals,
    not_to_save,
)
from pipeline.launching import console
from pipeline.launching.programs import Program


def supervise(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    descriptors: tuple[int, ...] = (),
    alive: Callable[[], None] = lambda: None,
    stop_with: signal.Signals | None = None,
    command: str = "",
    program: Program | None = None,
) -> int:
    """Run a command; returns its exit status, or `program`'s after a signal (by default 75).

    The first of STOP_SIGNALS is passed on as SIGTERM, so that the ranks save and leave; a Ctrl-C
    after it kills. The command inherits `descriptors`, which stay open as long as it lives. `alive`
    is called whenever it prints. `stop_with`: the signal that the command wants instead of SIGTERM.
    `command`: the first line of the log, which tells what runs. `program`: what the command starts;
    by default a step.
    """
    program = program or Program(["-m", "pipeline"])
    # In a separate session
    become_subreaper()
    screen, stream = console.opened(), opened(log) if log else None
    screen.show_command(command.encode())
    if stream:
        stream.write(command.encode())
    child = subprocess.Popen(
        words,
        env=environment,
        stdin=program.stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, signal.SIGTERM, os.getpid()),
        pass_fds=descriptors,
    )
    signals = passed_on(child.pid, stop_with)

    assert child.stdout is not None
    # Output until the end
    copying = threading.Thread(target=relay, args=(child.stdout, stream, alive, screen))
    copying.start()
    status = child.wait()
    end_descendants()  # they hold the other end of what is copied
    copying.join()
    screen.close()

    # Its status in our terms
    if signals:
        return program.status_after_stop(exit_status(status), signals[0])
    if status < 0:
        then = ": the same command resumes" if program.is_step else ""
        print(f"error: the job was killed by {signal.Signals(-status).name}{then}", file=sys.stderr)
    return exit_status(status)


def passed_on(child: int, stop_with: signal.Signals | None) -> list[int]:
    """Pass signals on to the session of a process; returns the list of those that come.

    The first asks it to stop, by SIGTERM or by `stop_with` to that process alone; a Ctrl-C after it
    kills.
    """
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        with suppress(ProcessLookupError):
            if not_to_save(signals):
                os.killpg(child, signal.SIGKILL)
            elif len(signals) == 1 and stop_with is not None:
                os.kill(child, stop_with)
            elif len(signals) == 1:
                os.killpg(child, signal.SIGTERM)

    handle_stop_signals(forward)
    return signals


def opened(log: Path) -> IO[bytes]:
    """A new log; its folder is made if it is absent."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("wb")


def relay(
    source: IO[bytes], log: IO[bytes] | None, alive: Callable[[], None], screen: console.Whole
) -> None:
    """Copy what the job prints to the screen and the log until all of it has closed its end.

    All of it is read even if neither can be written: ranks would else wait for ever in a print.
    """
    # A full disk stops nothing
    while chunk := os.read(source.fileno(), 65536):
        try:
            if log:
                log.write(chunk)
                log.flush()
        except OSError as error:
            screen.show(f"the log is not written any more: {error.strerror}\n".encode())
            log = None
        alive()
        screen.show(chunk)

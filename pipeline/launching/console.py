"""A job as a person at the terminal sees it: all that it prints, or the brief form of it.

The log has all of it in either form. Brief (PIPELINE_OUTPUT=brief, set by the Makefile): progress
is one line that is written over on a terminal and a line a minute elsewhere; commands that are
started are left out; a job ends with its time. Whatever else a job prints is shown, errors too.
"""

import os
import sys
import time
from collections.abc import Mapping

from pipeline.base.progress import is_progress

VARIABLE, BRIEF = "PIPELINE_OUTPUT", "brief"
EVERY_S = 60.0  # between two lines of progress if lines cannot be written over
CLEAR = b"\r\033[K"  # of a terminal's line


def is_brief(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the brief form is asked for."""
    return environment.get(VARIABLE) == BRIEF


def write(chunk: bytes) -> None:
    """Write to stdout; if that fails, the rest of the output is dropped."""
    try:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Whole:
    """Everything, as it comes."""

    def show(self, chunk: bytes) -> None:
        """Show a piece of the output."""
        write(chunk)

    def show_command(self, line: bytes) -> None:
        """Show the line that tells what is started."""
        self.show(line)

    def close(self) -> None:
        """The output has ended."""


class Brief(Whole):
    """Whole lines, and of progress the newest or one now and then."""

    def __init__(self) -> None:
        self.rest = b""  # of a line that has not ended
        self.last_time = time.monotonic()  # of a line that stays
        self.in_place = sys.stdout.isatty()

    def show(self, chunk: bytes) -> None:
        """Show the lines that a piece of the output ends."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            self.show_line(line)

    def show_command(self, line: bytes) -> None:
        """Left to the log."""

    def close(self) -> None:
        """The output has ended, perhaps within a line."""
        if self.rest:
            self.show_line(self.rest)

    def show_line(self, line: bytes) -> None:
        """Show one line, without its newline, if it is to be seen."""
        # A line that the next one replaces
        is_replaced = is_progress(line.decode(errors="replace"))
        if is_replaced and self.in_place:
            write(CLEAR + line)
            return
        # Lines that stay
        now = time.monotonic()
        if is_replaced and now - self.last_time < EVERY_S:
            return
        self.last_time = now
        write((CLEAR if self.in_place else b"") + line + b"\n")


def opened() -> Whole:
    """The view of the output of a job."""
    return Brief() if is_brief() else Whole()

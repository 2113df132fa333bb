"""User errors: one sentence on stderr (what, where, remedy) and exit status 2, no traceback."""

import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.base.processes import keep_exit_status

# Exit statuses
EXIT_USER_ERROR = 2  # bad input; nothing was started
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: stopped by a signal after saving; the same command resumes

NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)  # what a place of another user gives


class UserError(Exception):
    """A problem that the user can solve. The message is one sentence: what, where, remedy."""


class OneRankError(UserError):
    """A UserError that a single rank may meet, so that the rank that meets it prints it."""


class Stopped(BaseException):
    """A signal asked the step to stop; its state is saved and the same command resumes.

    Not an Exception: a signal handler may raise it inside code that expects a damaged file.
    """


def without_right(error: OSError) -> str:
    """The sentence about a place that this user may not read, or not write to."""
    return (
        f"{error.filename} cannot be read or written by this user ({error.strerror}): ask its "
        "owner for the right to, or name another place"
    )


def run_main(step: Callable[[list[str]], None], own_help: bool = False) -> NoReturn:
    """Run `step(argv)` and exit: 0, 2 after a UserError or in a place without rights, 75 after
    Stopped.

    Under a launcher the first rank of each machine prints an error that every rank meets. With -h
    or --help as its first word a step prints what its module says of it, unless it has `own_help`.
    """
    gc.freeze()  # what has been imported stays: no collection looks at it, nor does the last one
    # A file's name that is not UTF-8 is printed all the same, as on stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Help
    if not own_help and sys.argv[1:2] in (["-h"], ["--help"]):
        print(sys.modules[step.__module__].__doc__)
        sys.exit(0)
    # One message per job
    rank = os.environ.get("RANK", "0")
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    # Statuses of the step
    try:
        step(sys.argv[1:])
    except UserError as error:
        if first_here or isinstance(error, OneRankError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:  # a place that no check of the step has looked at
        if error.errno not in NO_RIGHT or error.filename is None:
            raise
        print(f"error: {without_right(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:  # before or after the part of a step that saves on a signal
        sys.exit(EXIT_INTERRUPTED)
    except Stopped as stop:
        if rank == "0":
            print(f"stopped: {stop}", file=sys.stderr, flush=True)
        sys.exit(EXIT_RESUMABLE)
    finally:
        keep_exit_status()
    sys.exit(0)

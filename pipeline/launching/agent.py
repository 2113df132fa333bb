"""torchrun's agent with this project's messages, see torchrun.

A rank that was killed or failed ends all of them, and with --max-restarts they start again; a rank
that left with a message, or after it saved on a signal, is not started again. torch has no
public hook for that, so Agent overrides three methods of its agent: `_monitor_workers` (the only
place that sees a failure before the restart), `_shutdown` and `_stop_workers` (which wait for the
ranks, under handlers that a second signal would end). After a signal it calls `_exit_barrier`, so
that no node waits for one that has left. `launcher.api` is told to use Agent.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    DEFAULT_ROLE,
    RunResult,
    WorkerGroup,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError
from torch.distributed.launcher import api
from torch.distributed.run import parse_args, run

from pipeline.base.errors import EXIT_RESUMABLE, EXIT_USER_ERROR
from pipeline.base.processes import STOP_SIGNALS, exit_status, keep_exit_status
from pipeline.launching.commands import IS_STEP
from pipeline.launching.forked import fork_ranks
from pipeline.launching.programs import environment_for
from pipeline.steps import BY_MODULE

FINAL = (EXIT_USER_ERROR, EXIT_RESUMABLE)


def cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure from which the others follow: killed, else FINAL, else the first of all.

    SIGTERM counts last: the agent itself sends it to the ranks that are left.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, bool, int]:
        status = item[1].exitcode
        return status == -signal.SIGTERM, status >= 0, status not in FINAL, item[1].timestamp

    return min(failures.items(), key=order)


def status_after(error: SignalException) -> int:
    """The exit status of ranks that a signal stopped; that of the signal if there were none."""
    failures = error.failures if isinstance(error, RanksStopped) else {}
    return exit_status(cause(failures)[1].exitcode if failures else -error.sigval)


def stop(number: int, frame: FrameType | None = None) -> None:
    """End the agent, which then waits for its ranks."""
    raise SignalException(f"got signal {number}", sigval=signal.Signals(number))


class RanksStopped(SignalException):
    """A signal to the agent, after which ranks did not end with success."""

    def __init__(self, cause: SignalException, failures: Mapping[int, ProcessFailure]) -> None:
        """`failures`: how each of those ranks ended."""
        super().__init__(str(cause), cause.sigval)
        self.failures = failures


class Agent(LocalElasticAgent):
    """torchrun's agent, which also says what ended a rank and knows when to give up."""

    goes_on = False  # whether the ranks go on from a checkpoint

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of torch's agent."""
        super().__init__(*args, **kwargs)
        self.signals: list[int] = []  # that came while the ranks were being stopped
        self.num_failures = 0  # of the ranks, each of which costs a restart

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run the ranks; a signal leaves their success to ranks at their very end, and to those
        of a node that only waits for another node's.
        """
        # Success survives a signal
        try:
            result = super().run(role)
            keep_exit_status()
            return result
        except SignalException as error:
            group = self.get_worker_group(role)
            if group.state not in (WorkerState.HEALTHY, WorkerState.SUCCEEDED):  # none were started
                raise
            result = super()._monitor_workers(group)
            if result.state != WorkerState.SUCCEEDED:
                raise RanksStopped(error, result.failures) from error
            if group.state == WorkerState.HEALTHY:  # another node may be waiting for this one
                self._exit_barrier()
            return result

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        # Some failures are final
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and result.failures:
            rank, failure = cause(result.failures)
            if failure.exitcode in FINAL:
                raise ChildFailedError(worker_group.spec.get_entrypoint_name(), result.failures)
            self._report(rank, failure, worker_group.spec.max_restarts)
            self.num_failures += 1
        return result

    def _report(self, rank: int, failure: ProcessFailure, max_restarts: int) -> None:
        # How it ended
        code = failure.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
        restarts = self.num_failures < max_restarts
        number = f"{self.num_failures + 1} of {max_restarts}"
        # How it goes on
        then = f"all start again ({number})" if restarts else "all have ended"
        if self.goes_on:
            goes = "they go" if restarts else "the same command goes"
            then += f"; {goes} on from the last checkpoint"
        line = f"error: rank {rank} (process {failure.pid}) {how}: {then}"
        print(line, file=sys.stderr, flush=True)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """Wait for the ranks; a signal that comes twice, as a scheduler sends it to every process
        and the launcher passes it on, must not end the wait.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _: self.signals.append(number))
        super()._shutdown(death_sig, timeout)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Before a restart: a signal that came meanwhile, or comes now, ends the job."""
        super()._stop_workers(worker_group)
        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        if self.signals:
            stop(self.signals[0])


def not_met(error: RendezvousError, words: Sequence[str]) -> str:
    """A sentence about nodes that did not meet; `words` are those of torchrun."""
    given = dict(word.partition("=")[::2] for word in words)
    place, name = given.get("--rdzv-endpoint"), given.get("--rdzv-id")
    if not isinstance(error, RendezvousConnectionError):
        return (
            f"too few nodes met at {place} in time as {name}: start the same command on every "
            "node, with the same keys, data and code, and give each job a separate port"
        )
    if "is_host=1" in given.get("--rdzv-conf", ""):
        return (
            f"the port of launch.rdzv_endpoint={place} is taken, perhaps by another job: "
            "give another one, the same on every node"
        )
    return (
        f"nothing answers at launch.rdzv_endpoint={place}: start the same command on the first "
        "node, and see that other nodes can reach this port"
    )


def run_ranks(words: Sequence[str]) -> None:
    """torchrun, except that what stands behind -m MODULE reaches the module as it is.

    torchrun's parser drops the first -- of them and stumbles over what could be short for several
    options of its own; its agent puts numbers for ${local_rank} and one dollar sign for two.
    """
    end = words.index("-m") + 2 if "-m" in words else len(words)
    args = parse_args(words[:end])
    args.training_script_args += [word.replace("$", "$$") for word in words[end:]]
    python = os.environ.get("PYTHON_EXEC", sys.executable)
    os.environ.update(environment_for(python, os.environ))
    step = BY_MODULE.get(args.training_script)
    if Agent.goes_on and step and python == sys.executable:
        fork_ranks(step)
    run(args)


def quiet_main() -> int:
    """Run torchrun; the exit status of the rank that failed, 75 after a signal to a step.

    2 if the nodes did not meet.
    """
    # No traceback of the agent
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Our agent in its place
    Agent.goes_on = sys.argv[1:2] == [IS_STEP]
    words = sys.argv[2 if Agent.goes_on else 1 :]
    api.LocalElasticAgent = Agent  # type: ignore[misc]
    try:
        with TemporaryDirectory(prefix="torchrun-") as folder:  # torch would leave one behind
            run_ranks(["--log-dir", folder, *words])
    except ChildFailedError as error:
        return exit_status(int(cause(error.failures)[1].exitcode))
    except SignalException as error:
        return EXIT_RESUMABLE if Agent.goes_on else status_after(error)
    except RendezvousError as error:
        print(f"error: {not_met(error, words)}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    return 0

"""This process among the ranks: rank, world size, device, and what ranks exchange."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.base.code import code_sha256
from pipeline.base.errors import Stopped, UserError
from pipeline.base.processes import die_with_parent, handle_stop_signals, name_process
from pipeline.compute import gpus, meeting
from pipeline.compute.agreement import disagreement


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes. `device` is the one it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this is the first rank of its machine."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over all ranks of a float tensor on `device`."""
        if self.world > 1:
            dist.all_reduce(value)
            value = value / self.world
        return value

    def minimum(self, value: torch.Tensor) -> torch.Tensor:
        """Least of all ranks, element by element, of an integer tensor on `device`."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, element by element, of a tensor on `device` or the CPU."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        """On rank 0 the CPU tensors (n_r, ...) of all ranks, in their order; elsewhere nothing."""
        # Rows of each rank
        lengths = torch.zeros(self.world, dtype=torch.int64)
        lengths[self.rank] = len(value)
        lengths = self.sum(lengths)

        # Sent by the others
        if not self.first:
            dist.send(value.contiguous(), 0)
            return []

        # Joined on rank 0
        tensors = [value.new_empty(int(n), *value.shape[1:]) for n in lengths[1:]]
        for rank, tensor in enumerate(tensors, 1):
            dist.recv(tensor, rank)
        return [value, *tensors]

    def agree(self, identity: Mapping[str, object]) -> None:
        """Compare nested JSON values, which must be the same on all ranks that name them.

        Raises UserError on every rank, with the same sentence, if two ranks differ.
        """
        if self.world == 1:
            return
        texts = self.gather(as_tensor(json.dumps(identity)))
        sentence = disagreement([json.loads(as_text(text)) for text in texts]) if texts else ""
        if sentence := self.share(sentence):
            raise UserError(sentence)

    def share(self, text: str) -> str:
        """The text of rank 0, on every rank; that of the others does not count."""
        tensor = as_tensor(text if self.first else "")
        length = int(self.sum(torch.tensor(len(tensor))))
        padded = tensor if self.first else torch.zeros(length, dtype=torch.uint8)
        return as_text(self.sum(padded)) if length else ""


def as_tensor(text: str) -> torch.Tensor:
    """The bytes of a text, uint8 (n,)."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def as_text(tensor: torch.Tensor) -> str:
    """The text of bytes uint8 (n,): the inverse of `as_tensor`."""
    return bytes(tensor.tolist()).decode()


def pick_device(setting: str, local_rank: int) -> torch.device:
    """The device of a local rank: `setting` is auto, cpu or cuda.

    Raises UserError if CUDA is wanted and absent, devices are fewer than local ranks, or torch
    cannot use the GPUs of this machine.
    """
    # The CPU, if allowed
    count = torch.cuda.device_count()
    if setting != "cpu" and count == 0:
        gpus.check_torch(gpus.visible(), setting)
    if setting == "cpu" or (setting == "auto" and count == 0):
        return torch.device("cpu")

    # A GPU of this rank
    if local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise UserError(
            f"{count} GPUs are visible (CUDA_VISIBLE_DEVICES={visible}) but local rank "
            f"{local_rank} needs one more: start fewer processes or make more devices visible"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def ranks(device: str, identity: Mapping[str, object], join_seconds: float) -> Iterator[Ranks]:
    """The ranks of this job, from torchrun's environment; one process without it.

    `identity`: nested JSON values that must be the same on all ranks, as the code must be; raises
    UserError on all of them if they are not. `join_seconds`: the time that rank 0 waits for the
    others if nothing watches them.

    nccl on GPUs, gloo on CPUs. A rank dies with its launcher, so that none is orphaned on a GPU.
    If another rank is gone, this one exits with a sentence and status 1. It meets that at the
    latest in the next exchange over gloo; one that waits on its GPU is killed by torchrun.
    """
    # This rank's device
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    rank_device = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if rank_device.type == "cuda":
        torch.cuda.set_device(rank_device)
    # Ranks end with torchrun, and can be told apart in top
    if "RANK" in os.environ:
        die_with_parent(signal.SIGKILL)
        name_process(f"python rank {rank}")
    # Alone
    if world == 1:
        yield Ranks(rank, world, rank_device)
        return

    # With other ranks
    store = None if meeting.is_watched() else meeting.meet(rank, world, join_seconds)
    dist.init_process_group(
        # gloo beside nccl carries what lives on the CPU, such as the stop flag
        backend="cpu:gloo,cuda:nccl" if rank_device.type == "cuda" else "gloo",
        timeout=timedelta(hours=1),
        store=store,
        rank=rank,
        world_size=world,
        device_id=rank_device if rank_device.type == "cuda" else None,
    )
    together = lost = False  # whether all ranks have come to the same end; whether one is gone
    try:
        group = Ranks(rank, world, rank_device)
        group.agree({**identity, "code": code_sha256()})
        yield group
        together = True
    except Stopped:
        together = True
        raise
    except RuntimeError as error:
        lost = lost_rank(error)
        if not lost:
            raise
        # First line of the reason
        reason = str(error).splitlines()[0].rpartition("] ")[2]
        raise SystemExit(
            f"error: rank {rank} lost another rank ({reason[:80]}), which was killed or failed: "
            "the same command resumes from the last checkpoint"
        ) from error
    finally:
        # nccl would wait for ranks that are gone, or still compute: an error would not be told
        if together or (rank_device.type == "cpu" and not lost):
            dist.destroy_process_group()


def lost_rank(error: RuntimeError) -> bool:
    """Whether torch raised `error` since another rank no longer answers."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class StopFlag:
    """Turns a signal of STOP_SIGNALS into a flag that is the same on all ranks.

    The flag is reduced over the CPU group, which costs no GPU synchronisation.
    """

    def __init__(self, group: Ranks) -> None:
        self.group = group
        self.signal: int | None = None
        handle_stop_signals(self._remember)

    def _remember(self, number: int, frame: object) -> None:
        self.signal = number

    def agree(self, save: bool = False) -> tuple[bool, bool]:
        """(stop, save): whether any rank was signalled, and whether any wants to save.

        Every rank must ask at the same place; all get the same answer.
        """
        flags = torch.tensor([self.signal is not None, save], dtype=torch.int32)
        if self.group.world > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags[0]), bool(flags[1])

"""How much a part measures, and on what: as promised on a GPU, or as little as a test wants."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

import torch

from pipeline.bench.train import GPU_WORDS

T = TypeVar("T")


class OutOfTime(BaseException):
    """A case was interrupted so that its part can end and keep what it has measured.

    Like KeyboardInterrupt it is not an error of the case: torch.compile wraps or swallows those.
    """


class Unavailable(Exception):
    """A part cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Scale:
    """Device, experiment and numbers of a part."""

    # On what
    device: torch.device
    words: tuple[str, ...] = GPU_WORDS  # of the configuration
    # How much
    largest: int = 512  # images a pass at most
    rounds: int = 5
    steps: int = 5  # training steps of a round
    images: int = 64  # sampled at once
    files: int = 64_000  # packed
    # How long
    seconds: float = 400.0  # from the start of the part, after which no case begins
    limit: float = 500.0  # after which the case that runs is interrupted
    began: float = field(default_factory=time.monotonic)

    def in_time(self) -> bool:
        """Whether another case may begin."""
        return time.monotonic() - self.began < self.seconds

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Around a case: raises OutOfTime in it at `limit`. In the main thread only (SIGALRM)."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            raise OutOfTime(f"it was interrupted {self.limit:.0f} s after the start of the part")

        before = signal.signal(signal.SIGALRM, interrupt)
        left = self.limit - (time.monotonic() - self.began)
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def measure(
        self, name: str, case: Callable[[], T], results: dict[str, T], notes: list[str]
    ) -> None:
        """Add a case to `results` by its name; to `notes`, if no time is left or it fails."""
        if not self.in_time():
            notes.append(f"{name}: no time was left")
            return
        try:
            with self.limited():
                results[name] = case()
        except OutOfTime as reason:
            notes.append(f"{name}: {reason}")
        except Exception as error:  # a case that torch refuses is a finding, not the end
            notes.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")

    def halvings(self) -> list[int]:
        """Numbers of images a pass: `largest`, half of it, and so on to 1."""
        return [self.largest >> k for k in range(self.largest.bit_length())]

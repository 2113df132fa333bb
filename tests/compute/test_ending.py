"""How the ranks of a job part: what one rank alone meets must not wait for the others."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pipeline.base.errors import OneRankError, Stopped, UserError
from pipeline.compute import distributed, meeting
from pipeline.compute.distributed import Ranks, ranks

CPU = torch.device("cpu")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What rank 0 of two does to its group, without a second one."""
    events: list[str] = []

    def begin(**options: object) -> None:
        assert options["world_size"] == 2 and options["timeout"] == timedelta(hours=1)
        events.append("begun")

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(
        distributed, "pick_device", lambda setting, _: gpu if setting == "cuda" else CPU
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: events.append("destroyed"))
    monkeypatch.setattr(distributed, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(meeting, "is_watched", lambda: True)
    monkeypatch.setattr(Ranks, "agree", lambda *_: None)
    return events


def test_ranks_that_end_together_destroy_their_group(events: list[str]) -> None:
    with ranks("cuda", {}, 1):
        pass
    assert events == ["begun", "destroyed"]


def test_so_do_those_that_a_signal_has_stopped(events: list[str]) -> None:
    with pytest.raises(Stopped), ranks("cuda", {}, 1):
        raise Stopped("saved")
    assert events == ["begun", "destroyed"]


@pytest.mark.parametrize(
    "error",
    [
        OneRankError("no memory left on this GPU"),
        UserError("no space left on the disk of rank 0"),
        ValueError("a fault of this rank's data"),
        RuntimeError("CUDA error"),
        KeyboardInterrupt(),
    ],
)
def test_a_rank_that_fails_leaves_at_once(error: BaseException, events: list[str]) -> None:
    # nccl's communicators are destroyed by all ranks together: this one would wait for others,
    # which wait for it in the middle of a step, and its message would come an hour later
    with pytest.raises(type(error)), ranks("cuda", {}, 1):
        raise error
    assert events == ["begun"]


def test_gloo_does_not_wait(events: list[str]) -> None:
    with pytest.raises(UserError), ranks("cpu", {}, 1):
        raise UserError("keys that differ")
    assert events == ["begun", "destroyed"]

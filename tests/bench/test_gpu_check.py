"""The checks of a GPU hold on the CPU, and their command survives whatever they do."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.bench.gpu_check import (
    attention,
    command,
    group,
    memory,
    networks,
    numbers,
    processes,
    sampling,
    scoring,
    sharding,
    training,
    workloads,
)
from pipeline.bench.gpu_check.check import (
    FAILED,
    NOT_APPLICABLE,
    OK,
    Check,
    Figure,
    NotApplicable,
    Outcome,
    run_check,
)
from tests.conftest import ROOT

CPU = torch.device("cpu")
MODULES = (
    numbers, networks, attention, training, sharding, memory, sampling, workloads, scoring,
    processes,
)  # fmt: skip
SLOW = (processes, training, sampling)
EVERY = [
    pytest.param(check, id=check.name, marks=[pytest.mark.slow] if module in SLOW else [])
    for module in MODULES
    for check in module.CHECKS
    if not check.not_on_cpu
]  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("check", EVERY)
def test_it_holds_on_the_cpu(check: Check) -> None:
    outcome = run_check(check, CPU)
    assert outcome.state in (OK, NOT_APPLICABLE), outcome
    if outcome.state == NOT_APPLICABLE:
        assert outcome.text, outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure",
    [
        partial(networks.agrees, "imagenet", "fp32", True),
        partial(networks.agrees, "imagenet", "bf16", True),
        partial(training.steps, "fp32", True, 1e-4, num=20),
        partial(sharding.fsdp2, True),
        sampling.compiled,
    ],
    ids=["network", "network in bf16", "steps", "fsdp2", "samples"],
)
def test_compiled_on_the_cpu(
    measure: Callable[[torch.device], Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the compiler all but the C++, which takes minutes for networks of this size
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(training, "STEPS", 20)
    outcome = run_check(Check("compiled", measure, ""), CPU)
    assert outcome.state == OK, outcome


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_compiled_to_machine_code() -> None:
    outcome = run_check(Check("compiled", partial(sharding.fsdp2, True), ""), CPU)
    assert outcome.state == OK, outcome


# --- the command ---------------------------------------------------------------------------------


def raising(error: Exception) -> Check:
    def measure(device: torch.device) -> Figure:
        raise error

    return Check("raises", measure, "")


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (NotApplicable("no card"), NOT_APPLICABLE, "no card"),
        (ModuleNotFoundError("x", name="pynvml"), NOT_APPLICABLE, "pynvml is not installed"),
        (ModuleNotFoundError("x", name="torch_fidelity.metric"), NOT_APPLICABLE, "torch_fidelity"),
        (ModuleNotFoundError("no y", name="pipeline.y"), FAILED, "ModuleNotFoundError: no y"),
        (ValueError("first\nsecond"), FAILED, "ValueError: first"),
        (torch.OutOfMemoryError("out"), FAILED, "OutOfMemoryError: out"),
    ],
)
def test_an_error_is_one_line(error: Exception, state: str, text: str) -> None:
    outcome = run_check(raising(error), CPU)
    assert outcome.state == state and text in outcome.text and "\n" not in outcome.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -1.0])
def test_a_figure_outside_of_its_bounds(value: float) -> None:
    check = Check("x", lambda device: Figure(value, 1.0, "units", 0.0), "why")
    outcome = run_check(check, CPU)
    assert outcome.state == FAILED and "units" in outcome.text
    again = Outcome.from_json(json.loads(json.dumps(outcome.to_json(), allow_nan=False)))
    assert str(again) == str(outcome)  # of NaN, too
    assert command.cells(again) == command.cells(outcome) and again.to_json() == outcome.to_json()
    command.table([outcome])


def test_names_are_unique() -> None:
    names = [check.name for module in MODULES for check in module.CHECKS]
    assert len(set(names)) == len(names) and command.NONE_LEFT not in names
    assert [m.__name__ for m in MODULES] == list(command.GROUPS.values())
    assert all(check.why for module in MODULES for check in module.CHECKS)


SCRIPT = """
import json, sys
from pipeline.bench.gpu_check import command

command.GROUPS = {"bad": "tests.bench.faulty_group", "attention": command.GROUPS["attention"]}
outcomes = command.run(sys.argv[2:], "cpu", float(sys.argv[1]), patience=1)
print(command.table(outcomes))
print(json.dumps([outcome.to_json() for outcome in outcomes]))
"""


def faulty(seconds: float, *names: str) -> tuple[dict[str, Any], str]:
    """Outcomes by name, and their table, of two groups of which the first misbehaves."""
    words = [sys.executable, "-c", SCRIPT, str(seconds), *names]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    return {outcome["name"]: outcome for outcome in json.loads(last)}, done.stdout


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_group_down() -> None:
    chosen = ["fine", "dies", "after", "card", "attention by math, fp32"]
    outcomes, table = faulty(100, *chosen)
    assert outcomes["fine"]["state"] == outcomes["attention by math, fp32"]["state"] == OK
    for name in ("dies", "after"):
        assert outcomes[name]["state"] == FAILED and "SIGSEGV" in outcomes[name]["text"]
    assert outcomes["card"]["state"] == NOT_APPLICABLE
    assert outcomes["card"]["text"] == "it needs a card"
    assert outcomes[command.NONE_LEFT]["state"] == OK
    assert "FAILED: the process of bad ended by SIGSEGV" in table


@pytest.mark.slow
def test_a_check_that_hangs_is_stopped() -> None:
    outcomes, _ = faulty(40, "hangs", "attention by math, fp32")
    assert outcomes["hangs"]["state"] == FAILED and "after 20 s" in outcomes["hangs"]["text"]
    assert outcomes["attention by math, fp32"]["state"] == OK


def test_a_group_has_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    clock = iter([0.0, 0.0, 50.0, 70.0, 101.0])  # at the start, and before each group
    monkeypatch.setattr(command, "GROUPS", dict.fromkeys("abcd", "x"))
    monkeypatch.setattr(command, "chosen", lambda *_: [])
    monkeypatch.setattr(command, "left_processes", lambda *_: [])
    monkeypatch.setattr(command, "run_group", lambda *words: given.append(words[-1]) or [])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    command.run([], "cpu", limit=100.0)
    assert given == [50.0, 50.0, 30.0, -1.0]


def test_a_group_without_time_is_not_started() -> None:
    assert command.in_process("a", "cpu", Path("x"), [], -1.0) == "there was no time left"


@pytest.mark.slow
def test_a_process_that_is_left_is_named() -> None:
    outcomes, _ = faulty(100, "leaves")
    left = outcomes[command.NONE_LEFT]
    assert outcomes["leaves"]["state"] == OK
    assert left["state"] == FAILED and "time.sleep(600)" in left["text"] and left["value"] == 1


def test_a_group_without_its_package_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def missing(module: str) -> None:
        raise ModuleNotFoundError("no pynvml", name="pynvml")

    monkeypatch.setattr(group, "import_module", missing)
    (check,) = group.checks_of("pipeline.bench.gpu_check.scoring")
    outcome = run_check(check, CPU)
    assert (check.name, outcome.state) == ("all of scoring", NOT_APPLICABLE)


def gpu_check(*words: str) -> subprocess.CompletedProcess:
    run = [sys.executable, "-m", "pipeline.bench", "gpu-check", "--no-record", *words]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_command_on_a_cpu() -> None:
    done = gpu_check("memory", "random words", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0] == "checks on the CPU"
    rows = [line for line in lines if "n/a: the memory of a CPU is not measured" in line]
    assert len(rows) == 2 and lines[-1].startswith("2 ok, 0 FAILED, 2 n/a, in ")


def test_a_name_that_no_check_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["nothing like it"])
    assert ended.value.code == 2
    assert "no check is called nothing like it" in capsys.readouterr().err


def test_a_failure_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, status in ((OK, 0), (NOT_APPLICABLE, 0), (FAILED, 1)):
        outcomes = [Outcome("x", state, "why"), Outcome("y", OK, "")]
        monkeypatch.setattr(command, "run", lambda *_, outcomes=outcomes: outcomes)
        assert command.main(["memory", "--device", "cpu", "--no-record"]) == status


def test_the_record_says_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    outcomes = [Outcome("x", FAILED, "why", float("nan"), None, 1.0, "units", "because", 2.0)]
    monkeypatch.setattr(command.record, "write", lambda name, result: kept.update({name: result}))
    monkeypatch.setattr(command, "run", lambda *_: outcomes)
    assert command.main(["--device", "cpu"]) == 1
    run = kept["gpu-check"]
    assert run["device"] == "cpu" and run["states"] == {OK: 0, FAILED: 1, NOT_APPLICABLE: 0}
    assert run["checks"][0]["name"] == "x" and run["checks"][0]["value"] == "nan"
    json.dumps(run, allow_nan=False)

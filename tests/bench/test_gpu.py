"""The parts of `bench gpu`, tiny and on the CPU; the table of a trace; which parts are left out."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from pipeline.bench import record
from pipeline.bench.gpu import data, parts, profile, sampling, scoring, training
from pipeline.bench.gpu.normalisation import by_channels
from pipeline.bench.gpu.scale import OutOfTime, Scale, Unavailable
from pipeline.compute import execution
from pipeline.training.memory import StepMemory
from tests.conftest import ROOT

CPU = torch.device("cpu")
WORDS = (
    "experiment=tiny", "runtime.compile=false", "train.flip=true", "model.dropout=0.1",
    "model.channel_mult=[1]", "model.attention_at=[]",
)  # fmt: skip


def tiny(**more: Any) -> Scale:
    numbers = {"largest": 4, "rounds": 2, "steps": 1, "images": 3, "files": 20} | more
    return Scale(CPU, WORDS, **numbers)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> training.Bench:
    return training.Bench(tiny(), str(tmp_path_factory.mktemp("bench")))


@pytest.fixture(scope="module")
def memory(bench: training.Bench) -> StepMemory:
    return bench.memory()


def notes(outcome: dict[str, Any]) -> str:
    return "\n".join(outcome["notes"])


# --- training ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_trainers_at_their_best() -> None:
    outcome = training.at_best(tiny())
    assert list(outcome["rounds"]) == [training.PLAIN, training.OURS]
    for name, case in outcome["cases"].items():
        assert case["batch"] in (4, 2) and case["rates"] == outcome["rounds"][name]
        assert case["mfu"] is None and case["peak_gb"] > 0 and 0 < case["model_gb"] < 1
    (bar,) = outcome["bars"]
    assert bar["value"] == outcome["ratio"][training.OURS] and bar["at_least"] == 3.5
    assert "images a pass" in notes(outcome)
    json.dumps(outcome)


def limited(bench: training.Bench, most: int) -> Callable[[int], Any]:
    """Our trainer on a device with memory for `most` images a pass."""

    def make(batch: int) -> Any:
        if batch > most:
            raise torch.OutOfMemoryError
        return bench.ours(batch)

    return make


@pytest.mark.slow
def test_a_size_that_does_not_fit_is_passed_over(bench: training.Bench, memory: StepMemory) -> None:
    assert bench.measured(limited(bench, 2), 4, memory) is None
    assert bench.best(limited(bench, 2), [4, 2, 1], memory).batch in (2, 1)
    assert bench.best(limited(bench, 1), [4, 2, 1], memory).batch == 1
    with pytest.raises(RuntimeError, match="not even a batch of one"):
        bench.best(limited(bench, 0), [4, 2, 1], memory)


@pytest.mark.parametrize(
    "message",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",  # by the compiler
    ],
)
def test_libraries_beside_torch_run_out_of_memory_too(
    bench: training.Bench, memory: StepMemory, message: str
) -> None:
    def raising(text: str) -> Callable[[int], Any]:
        def make(batch: int) -> Any:
            raise RuntimeError(text)

        return make

    assert bench.measured(raising(message), 4, memory) is None
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.measured(raising("CUDA error: an illegal memory access"), 4, memory)


# --- time ----------------------------------------------------------------------------------------


def sleeping() -> None:
    try:
        time.sleep(60)
    except Exception as error:  # as torch.compile does
        raise RuntimeError from error


def test_a_case_that_outlasts_its_part_is_interrupted() -> None:
    scale, results, said = tiny(limit=0.2), dict[str, Any](), list[str]()
    scale.measure("fast", lambda: 1.0, results, said)
    scale.measure("slow", sleeping, results, said)
    assert results == {"fast": 1.0}
    assert said == ["slow: it was interrupted 0 s after the start of the part"]
    # Nothing is left of the alarm
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_an_interrupted_size_leaves_the_one_before(
    bench: training.Bench, memory: StepMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training.Case(4, [9.0], None, 1.0, 1.0)
    monkeypatch.setattr(bench, "scale", tiny(limit=0.2))
    monkeypatch.setattr(bench, "measured", lambda _, n, __: first if n == 4 else sleeping())
    assert bench.best(bench.ours, [4, 2, 1], memory) is first
    with pytest.raises(OutOfTime):
        bench.best(bench.ours, [2, 1], memory)


@pytest.mark.slow
def test_the_faster_of_the_two_largest_counts(
    bench: training.Bench, memory: StepMemory, capsys: pytest.CaptureFixture
) -> None:
    rates = {4: 10.0, 2: 30.0, 1: 99.0}
    with patch.object(training, "rate", lambda trainer, steps: rates[trainer.micro]):
        case = bench.best(bench.ours, [4, 2, 1], memory)
    assert (case.batch, case.images_per_s) == (2, 30.0)
    # Each was told as soon as it was measured: a part that is stopped writes no record
    told = [line for line in capsys.readouterr().out.splitlines() if "images/s" in line]
    assert [line.partition(",")[0] for line in told] == [
        "Trainer: 4 images a pass", "Trainer: 2 images a pass",
    ]  # fmt: skip


def test_memory_is_counted_once(bench: training.Bench, memory: StepMemory) -> None:
    with patch.object(training, "step_memory", side_effect=AssertionError):
        assert bench.memory() == memory


def test_only_sizes_that_may_fit_are_tried(bench: training.Bench, memory: StepMemory) -> None:
    room = int(memory.peak(2) / training.EAGER_SHARE) + 1
    with patch.object(execution, "free_memory", lambda device: room):
        assert bench.sizes() == [2, 1]
    with patch.object(execution, "free_memory", lambda device: 0):
        assert bench.sizes() == [1]


@pytest.mark.slow
def test_sizes_without_time_are_named() -> None:
    outcome = training.by_micro_batch(tiny(rounds=1))
    assert list(outcome["cases"]) == [
        training.PLAIN, "ours, bf16, 4 images", "ours, bf16, 2 images", "ours, bf16, 1 images",
    ]  # fmt: skip
    assert [case["batch"] for case in outcome["cases"].values()][1:] == [4, 2, 1]
    late = training.by_micro_batch(tiny(rounds=1, seconds=0.0))
    assert list(late["cases"]) == [training.PLAIN]
    assert "ours, bf16, 4 images: no time was left" in late["notes"]


@pytest.mark.slow
def test_every_precision_is_trained() -> None:
    outcome = training.by_precision(tiny(rounds=1))
    names = [f"ours, {precision}" for precision in ("bf16", "fp16", "tf32", "fp32")]
    assert list(outcome["cases"]) == [training.PLAIN, *names]
    memory = [outcome["cases"][name]["model_gb"] for name in names]
    assert memory[0] == memory[1] != memory[2] == memory[3]


@pytest.mark.slow
def test_every_way_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile was asked for, and the memory format, while each case ran."""
    seen: list[tuple[str | None, torch.memory_format, object]] = []

    def compiled(net: torch.nn.Module, mode: str | None = None, **_: Any) -> torch.nn.Module:
        layout = execution.memory_format(torch.device("cuda"))
        seen.append((mode, layout, torch.nn.GroupNorm.forward))
        return net

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(execution, "compiler", lambda device: "none is needed")
    outcome = training.by_way(tiny(rounds=1))
    last, first = torch.channels_last, torch.contiguous_format
    assert [entry[:2] for entry in seen] == [
        (None, last), ("reduce-overhead", last), (None, last), (None, first),
    ]  # fmt: skip
    assert [norm is by_channels for *_, norm in seen] == [False, False, True, False]
    assert list(outcome["cases"])[1:] == [option.name for option in training.WAYS]
    assert execution.memory_format(torch.device("cuda")) == last


def test_an_option_that_fails_is_a_note() -> None:
    option = training.Option("ours, unknown", ("train.precision=bf17",))
    outcome = training.by_option(tiny(rounds=1), "by nothing", (option,))
    assert list(outcome["cases"]) == [training.PLAIN]
    assert "ours, unknown: UserError: " in notes(outcome) and "bf17" in notes(outcome)


# --- the profile ---------------------------------------------------------------------------------


def event(category: str, name: str, start: float, duration: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "args": args}


OPERATION = {"Input Dims": [[2, 3], [3, 4], []], "Input type": ["float", "c10::BFloat16", "Scalar"]}
TRACE = [
    event("cpu_op", "aten::mm", 0, 5, **{"External id": 1}, **OPERATION),
    event(
        "cpu_op", "aten::add", 5, 5, **{"External id": 2, "Input Dims": [[]], "Input type": [""]}
    ),
    event("kernel", "gemm_a", 10, 30, **{"External id": 1}),
    event("kernel", "gemm_b", 35, 10, **{"External id": 1}),  # begins before the last has ended
    event("kernel", "gemm_a", 55, 20),  # 10 us after it
    event("kernel", "elementwise", 75, 40, **{"External id": 2}),
    {"ph": "M", "name": "process_name"},
]


def test_a_trace_becomes_a_table() -> None:
    rows = {row.name: row for row in profile.table(TRACE)}
    assert list(rows) == ["gemm_a", "elementwise", "gemm_b"]
    assert rows["gemm_a"].ms == pytest.approx(0.050 / profile.STEPS)
    assert rows["gemm_a"].share == pytest.approx(0.5) and rows["gemm_a"].kind.startswith("conv")
    assert rows["gemm_a"].launches == pytest.approx(2 / profile.STEPS)
    # 24 + 24 bytes of both matrices, three quarters of them by the first kernel, in 30 us
    assert rows["gemm_a"].gb_per_s == pytest.approx(36 / 30e3)
    assert rows["gemm_b"].gb_per_s == pytest.approx(12 / 10e3)
    assert rows["elementwise"].gb_per_s is None
    assert profile.idle_us(profile.work(TRACE)) == (10.0, 105.0)
    assert profile.idle_us([]) == (0.0, 0.0)


def test_a_trace_is_described() -> None:
    outcome = profile.described(TRACE, {"data, clipping and averages": 0.04})
    assert outcome["gap_share"] == pytest.approx(10 / 105)
    bars = {bar["what"]: bar["holds"] for bar in outcome["bars"]}
    assert bars == {"time outside of network and optimiser": True, "time without a kernel": False}
    assert outcome["launches"] == pytest.approx(4 / profile.STEPS)
    assert "gemm_a" in notes(outcome) and " 50.0%" in notes(outcome)


def test_a_real_trace_names_operations_and_their_bytes() -> None:
    a, b = torch.ones(64, 64), torch.ones(64, 64, dtype=torch.bfloat16)
    events = profile.trace_of(lambda: (a + a, b @ b), CPU)
    operations = [e for e in events if e.get("cat") == "cpu_op"]
    sizes = {e["name"]: profile.argument_bytes(e) for e in operations}
    assert sizes["aten::add"] == 2 * 64 * 64 * 4 and sizes["aten::mm"] == 2 * 64 * 64 * 2
    adds = [row for row in profile.table(events, ("cpu_op",)) if row.name == "aten::add"]
    assert adds[0].launches == 1.0 and adds[0].ms > 0


def test_a_step_is_profiled() -> None:
    outcome = profile.of_a_step(tiny())
    assert list(outcome["rounds"]) == ["step", "data, clipping and averages"]
    assert 0 < outcome["ratio"]["data, clipping and averages"] < 1
    assert outcome["batch"] == 4 and outcome["gap_share"] is None  # no GPU, no kernel
    assert notes(outcome) == "no kernel of a GPU is in the trace"
    json.dumps(outcome)


# --- sampling, scoring, data ---------------------------------------------------------------------


@pytest.mark.slow
def test_solvers_are_measured_in_every_precision(capsys: pytest.CaptureFixture) -> None:
    outcome = sampling.by_solver(tiny(rounds=1), compiled=False)
    names = list(outcome["rounds"])
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert told[-len(names[2:]) :] == names[2:]
    assert names[:2] == [sampling.TWICE, sampling.ONCE]
    assert len(names) == 2 + 3 * 5 and {"rk4, tf32", "dopri5, bf16"} <= set(names)
    assert all(min(values) > 0 for values in outcome["rounds"].values())
    assert outcome["bars"][0]["value"] == outcome["ratio"][sampling.ONCE]
    late = sampling.by_solver(tiny(rounds=1, seconds=0.0), compiled=False)
    assert list(late["rounds"]) == names[:2] and "rk4, fp32: no time was left" in late["notes"]


def test_grids_take_equally_many_evaluations() -> None:
    stages = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}
    assert {n * sampling.STEPS[name] for name, n in stages.items()} == {sampling.EVALUATIONS}


def test_extractors_with_weights_are_measured() -> None:
    outcome = scoring.by_extractor(tiny(rounds=1))
    assert "efficientnet-lite0, 4 at once" in outcome["rounds"]
    assert "dinov2-vit-l-14 was not measured: " in notes(outcome)


def test_batches_are_loaded_both_ways() -> None:
    outcome = data.loading(tiny())
    assert list(outcome["rounds"]) == ["memory-mapped", "copied to the device"]
    assert all(min(values) > 0 for values in outcome["rounds"].values())


@pytest.mark.slow
def test_photographs_are_packed() -> None:
    outcome = data.packing(tiny(rounds=1))
    assert list(outcome["rounds"]) == ["png", "exact", "fast"]
    assert outcome["processes"] >= 1


# --- the command ---------------------------------------------------------------------------------


BARE = """
import sys

names = "efficientnet_lite_pytorch torch_fidelity simplejpeg submitit snakemake"
sys.modules.update(dict.fromkeys(names.split()))  # None: not to be had
import torch
from pipeline.bench.gpu import parts, scale

for part in ("scoring", "packing"):
    parts.measure(part, scale.Scale(torch.device("cpu"), largest=2, rounds=1, steps=1), keep=False)
"""


def test_a_bare_machine_lacks_two_parts_at_most() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "scoring: n/a: the weights of no feature extractor are on this machine\n"
        "packing: n/a: the package simplejpeg is not installed\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_and_status_2() -> None:
    command = [sys.executable, "-m", "pipeline.bench", "gpu", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {parts.NO_GPU}\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A GPU, records in `tmp_path`, and the processes that would have been started."""
    started: list[list[str]] = []

    def run_apart(part: str, words: list[str]) -> str | None:
        started.append([part, *words])
        return "its process ended with status 1" if part == "scoring" else None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    hardware = record.hardware
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    assert hardware()["gpu"] == "a card"
    monkeypatch.setattr(parts, "run_apart", run_apart)
    plain = parts.is_measured
    monkeypatch.setattr(parts, "is_measured", lambda part: plain(part, tmp_path))
    return started


def kept(part: str, folder: Path) -> None:
    outcome = record.summary("title", "images/s", {"a": [1.0]}, "a")
    record.write(parts.record_name(part), outcome, folder)


def test_parts_with_a_record_are_left_out(
    fake: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    kept("train", tmp_path)
    assert parts.main(["train", "loader", "--no-record"]) == 0
    assert fake == [["loader", "--force", "--no-record"]]
    assert "train: a record of this card and code exists" in capsys.readouterr().out
    # Forced, by other code, on another card
    fake.clear()
    assert parts.main(["train", "loader", "--force"]) == 0
    assert [part for part, *_ in fake] == ["train", "loader"]
    for name, value in (("code", "0123"), ("hardware", {"gpu": "another card"})):
        with patch.object(record, name, lambda value=value: value):
            assert not parts.is_measured("train")
    assert parts.is_measured("train")


def test_a_part_that_fails_is_named_and_the_others_run(
    fake: list[list[str]], capsys: pytest.CaptureFixture
) -> None:
    assert parts.main([]) == 1
    assert [part for part, *_ in fake] == list(parts.PARTS)
    assert capsys.readouterr().err == "scoring: FAILED: its process ended with status 1\n"


def test_a_process_that_fails_or_hangs_is_told_apart() -> None:
    assert parts.run_apart("no such part", []) == "its process ended with status 2"
    assert parts.run_apart("train", [], seconds=0.01) == "it took more than 0 s"


def test_one_part_is_measured_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    outcome = record.summary("title", "images/s", {"a": [1.0, 3.0]}, "a")
    monkeypatch.setitem(parts.PARTS, "loader", lambda scale: dict(outcome))
    parts.measure("loader", tiny(), keep=True, folder=tmp_path)
    assert "title" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "gpu-loader.json").read_text())["runs"]
    assert run["median"] == {"a": 2.0} and run["code"] == record.code()

    def missing(scale: Scale) -> dict[str, Any]:
        raise Unavailable("the package x is not installed")

    monkeypatch.setitem(parts.PARTS, "packing", missing)
    parts.measure("packing", tiny(), keep=True, folder=tmp_path)
    assert capsys.readouterr().out == "packing: n/a: the package x is not installed\n"
    assert not (tmp_path / "gpu-packing.json").exists()

"""The arithmetic of measurements and their records; and that loaders and trainers do equal work."""

import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

from pipeline.bench import loader, record, sampling
from pipeline.bench import train as training
from pipeline.bench.plain import PlainTrainer, one_rank
from pipeline.compute.distributed import Ranks
from pipeline.data import reader
from pipeline.sampling.field import Field
from pipeline.training.trainer import Trainer
from tests.conftest import resolved
from tests.random_networks import random_net

VALUES = {"a": [2.0, 4.0, 100.0], "b": [1.0, 8.0, 10.0]}


def test_cases_take_turns() -> None:
    clock = itertools.count()
    cases = {name: lambda: float(next(clock)) for name in "abc"}
    assert record.interleaved(cases, 2) == {"a": [0, 3], "b": [1, 4], "c": [2, 5]}


def test_medians_and_ratios() -> None:
    result = record.summary("what", "images/s", VALUES, "a")
    assert result["median"] == {"a": 4.0, "b": 8.0}
    assert result["ratio"] == {"a": 1.0, "b": 2.0}
    assert record.ratios(VALUES, "b") == {"a": 0.5, "b": 1.0}
    assert result["rounds"] == VALUES


def test_table_names_the_ratio_first() -> None:
    lines = record.table(record.summary("what", "images/s", VALUES, "a")).splitlines()
    assert lines[1].split()[:2] == ["ratio", "median"]
    assert lines[2].split() == ["1.00x", "4", "2", "…", "100", "a", "(baseline)"]
    assert lines[3].split() == ["2.00x", "8", "1", "…", "10", "b"]


def test_hardware_names_the_versions() -> None:
    about = record.hardware()
    assert about["torch"] == torch.__version__ and about["pillow"] == PIL.__version__
    assert about["cores"] >= 1 and about["memory_gb"] > 0.5 and about["cpu"]
    assert (about["gpu"] is None) == (not torch.cuda.is_available())


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_commit_says_whether_files_differ(tmp_path: Path) -> None:
    assert record.commit(tmp_path / "absent") is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = record.commit(tmp_path)
    assert clean and not clean.endswith("+")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "number.json").write_text("{}")
    assert record.commit(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert record.commit(tmp_path) == clean + "+"


def test_a_run_is_added_and_replaces_only_its_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit, scale in (("c1", 1), ("c2", 2), ("c1", 3)):
        monkeypatch.setattr(record, "commit", lambda commit=commit: commit)
        values = {name: [scale * v for v in case] for name, case in VALUES.items()}
        path = record.write("x", record.summary("what", "images/s", values, "a"), tmp_path)
    kept = json.loads(path.read_text())
    assert path == tmp_path / "x.json" and kept["what"] == "what"
    assert [(r["commit"], r["median"]["a"]) for r in kept["runs"]] == [("c2", 8), ("c1", 12)]
    assert kept["runs"][0]["hardware"] == record.hardware()
    assert kept["runs"][0]["code"] == record.code() and len(record.code()) == 12


def test_without_a_commit_code_tells_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that was given the files alone."""
    monkeypatch.setattr(record, "commit", lambda: None)
    for code in ("a1", "b2", "a1"):
        monkeypatch.setattr(record, "code", lambda code=code: code)
        path = record.write("x", record.summary("what", "images/s", VALUES, "a"), tmp_path)
    assert [r["code"] for r in json.loads(path.read_text())["runs"]] == ["b2", "a1"]


def test_each_run_keeps_its_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine measures something else under the same name, and an old run has no title."""
    runs = [{"commit": "old", "hardware": {"gpu": None}, "ratio": {"a": 1.0}}]
    (tmp_path / "x.json").write_text(json.dumps({"what": "on a CPU", "runs": runs}))
    for commit, title in (("c1", "on a GPU"), ("c2", "on two")):
        monkeypatch.setattr(record, "commit", lambda commit=commit: commit)
        path = record.write("x", record.summary(title, "images/s", VALUES, "a"), tmp_path)
    kept = json.loads(path.read_text())
    assert kept["what"] == "on a CPU"
    assert [run["what"] for run in kept["runs"]] == ["on a CPU", "on a GPU", "on two"]


def test_loaders_give_the_same_pixels(tmp_path: Path) -> None:
    ways = loader.cases(tmp_path, 20)
    assert len(np.unique(loader.photographs(20).reshape(20, -1), axis=0)) == 20
    for positions in (np.arange(12), np.arange(12, 47)):  # the second across three epochs
        png, gathered = ways["png"](positions), ways["gathered"](positions)
        assert png.shape == (len(positions), 64, 64, 3) and png.dtype == np.uint8
        np.testing.assert_array_equal(png, gathered)
        floats = reader.to_uint8(ways["gathered, float and flip"](positions))
        plain = torch.from_numpy(np.array(png)).permute(0, 3, 1, 2)
        same = (floats == plain).flatten(1).all(1)
        assert (same | (floats == plain.flip(3)).flatten(1).all(1)).all() and not same.all()


def test_every_round_loads_each_image_once() -> None:
    epochs, seen = itertools.count(), []
    for _ in range(2):
        assert loader.rate(lambda positions: seen.append(positions), 300, epochs) > 0
    assert [len(positions) for positions in seen] == [256, 44, 256, 44]
    assert np.concatenate(seen).tolist() == list(range(600))


def test_the_loader_benchmark_runs() -> None:
    threads = torch.get_num_threads()
    result = loader.run(rounds=2, num=40)
    assert torch.get_num_threads() == threads
    assert list(result["rounds"]) == ["png", "gathered", "gathered, float and flip"]
    assert all(len(values) == 2 and min(values) > 0 for values in result["rounds"].values())
    assert result["bars"][0]["value"] == result["ratio"]["gathered"] > 1
    assert result["bars"][0]["at_least"] == loader.BAR
    json.dumps(result)


CPU = Ranks(0, 1, torch.device("cpu"))
TINY = ("experiment=tiny", "train.label_dropout=0.3", "train.flip=true", "train.weight_decay=0.1")


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone, gone after the test."""
    with one_rank(CPU.device):
        yield


@pytest.fixture
def pair(tmp_path: Path, process_group: None) -> dict[str, PlainTrainer | Trainer]:
    """Both trainers of one tiny job."""
    words = (TINY, 16, str(tmp_path), "train.ema_halflife_images=[0,64]")
    plain, ours = training.job_of(*words), training.job_of(*words)
    return {"plain": PlainTrainer(plain, CPU), "ours": Trainer(ours, CPU)}


def test_the_plain_trainer_takes_the_same_steps(pair: dict) -> None:
    plain, ours = pair["plain"], pair["ours"]
    first = [p.detach().clone() for p in ours.net.parameters()]
    assert training.losses_differ(pair, steps=6) < 1e-5
    moved = [
        float((p.detach() - q).abs().max())
        for p, q in zip(ours.net.parameters(), first, strict=True)
    ]
    assert max(moved) > 1e-3
    averages = [(a, b.net) for a, b in zip(plain.averages, ours.averages, strict=True)]
    for theirs, mine in [(plain.net, ours.net), *averages]:
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, atol=2e-4, rtol=0)


def test_other_work_is_refused(pair: dict) -> None:
    for group in pair["plain"].optimizer.param_groups:
        group["weight_decay"] = 0.9
    pair["plain"].net.out_conv.bias.data.fill_(0.5)
    with pytest.raises(RuntimeError, match="losses of plain, ours differ by"):
        training.losses_differ(pair, steps=1)


def test_overhead_is_what_the_parts_leave(pair: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair["ours"]
    small = training.overhead(ours, 2)
    plain_step, began = ours._clip, time.monotonic()
    ours.train_step()
    several_steps = 5 * (time.monotonic() - began)  # however fast this machine is now
    monkeypatch.setattr(ours, "_clip", lambda: (time.sleep(several_steps), plain_step()))
    assert 0 < small < 0.5 < training.overhead(ours, 2) < 1


@pytest.mark.slow
def test_the_training_benchmark_runs(process_group: None) -> None:
    result = training.on_cpu(8, rounds=2, steps=1, words=TINY)
    assert list(result["rounds"]) == ["plain, float32", "ours, float32", "ours, bf16"]
    assert all(len(values) == 2 and min(values) > 0 for values in result["rounds"].values())
    bars = {bar["what"]: bar for bar in result["bars"]}
    assert bars["ours, bf16 / plain"]["value"] == result["ratio"]["ours, bf16"]
    assert 0 < bars["relative difference of losses"]["value"] <= training.TOLERANCE
    assert "unmeasured" in result["notes"][0]
    json.dumps(result)


def test_kernels_are_told_apart() -> None:
    names = {
        "void pytorch_flash::flash_fwd_kernel<cutlass::bfloat16_t>": "attention",
        "sm90_xmma_dgrad_implicit_gemm_bf16bf16_nhwc": "convolution and linear layers",
        "triton_red_fused_native_group_norm_silu_3": "normalisation and what is fused with it",
        "multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>": "optimiser",
        "multi_tensor_apply_kernel<TernaryOpScalarFunctor, _foreach_lerp_>": "average",
        "multi_tensor_apply_kernel<BinaryOpListAlphaFunctor<float, 2, 2, 0>>": "average",
        "multi_tensor_apply_kernel<LpNormFunctor<float, NormType::L2>>": "other",
        "vectorized_elementwise_kernel<BitwiseXorFunctor<long>>": "data and noise",
        "triton_poi_fused_add_7": "other",
    }
    assert {name: training.kind_of(name) for name in names} == names
    assert "75.0%  attention" in training.profile_lines({"attention": 3.0, "other": 1.0})[0]


# --- sampling ------------------------------------------------------------------------------------


def test_two_calls_guide_as_one_does() -> None:
    keys = resolved("experiment=tiny", "sample.guidance=2", "sample.precision=fp32")
    net = random_net(keys.model, 0).eval()
    labels, rows = torch.tensor([0, 3, 9]), torch.arange(3)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    one, two = (kind(keys.sample, net, labels, 10) for kind in (Field, sampling.TwoCalls))
    with torch.inference_mode():
        torch.testing.assert_close(one(x, t, rows), two(x, t, rows), rtol=1e-5, atol=1e-5)
    assert one.evaluations.tolist() == two.evaluations.tolist() == [2, 2, 2]

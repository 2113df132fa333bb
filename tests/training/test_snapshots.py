"""Averages of power profile in training: tracked, stored, the same after a kill, on any ranks."""

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from pipeline import train
from pipeline.compute.distributed import Ranks
from pipeline.config.stages import stage_keys
from pipeline.training import checkpoint, memory, snapshot_files, snapshots
from pipeline.training.ema import PowerAverage
from pipeline.training.power_profile import Profile, decay
from pipeline.training.trainer import Trainer
from pipeline.training.weights_file import WeightsAbout, load_weights, read_about, save_weights
from tests.conftest import resolved
from tests.on_ranks import train_on_ranks
from tests.test_train import difference, outcome, run, words

FP16 = "train.ema_snapshot_precision=fp16"
POWER = ["train.ema=power", FP16, "train.ema_snapshot_images=30", "runtime.keep_checkpoints=9"]
SIMPLE = ["model.dropout=0", "train.warmup_images=0"]
ENDS = [36, 60, 96]  # images at snapshots: steps of 12, multiples of 30, the end
BASE = resolved("train.ema=power").train
CPU = Ranks(0, 1, torch.device("cpu"))


def folder_of(out: Path) -> Path:
    (folder,) = out.glob("checkpoints/*/averages")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder_of(out).iterdir())}


@pytest.fixture(scope="module")
def trained(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averages of power profile, in one process."""
    out = tmp_path_factory.mktemp("power")
    run(pack, out, *POWER)
    return out


def test_both_widths_are_stored_at_each_multiple_and_at_the_end(trained: Path) -> None:
    stored = snapshot_files.stored(folder_of(trained))
    assert [*stored] == [Profile(w, n) for w in (0.05, 0.1) for n in ENDS]
    for profile, path in stored.items():
        about = read_about(path)
        assert (about.ema_width, about.images) == (profile.width, profile.images)
    assert [path.name for path in trained.glob("*.safetensors")] == ["weights.safetensors"]
    about, weights = read_about(trained / "weights.safetensors"), outcome(trained)[0]
    assert (about.ema_width, about.ema_halflife_images, about.images) == (0.05, None, 96)
    assert (trained / str(about.snapshots)).resolve() == folder_of(trained).resolve()
    for key, value in load_weights(stored[Profile(0.05, 96)]).items():
        assert value.dtype == torch.float16 and torch.equal(value, weights[key].half())


def test_a_run_that_ends_where_it_resumes_stores_the_averages_of_its_end(
    trained: Path, pack: Path, tmp_path: Path
) -> None:
    """A longer run has left a checkpoint there, but no averages."""
    shutil.copytree(trained, tmp_path / "out")
    run(pack, tmp_path / "out", *POWER, "train.images=48")
    run(pack, tmp_path / "new", *POWER, "train.images=48")
    ends = {name: data for name, data in contents(tmp_path / "new").items() if "48.s" in name}
    assert len(ends) == 2 and contents(tmp_path / "out").items() >= ends.items()
    stored = snapshot_files.stored(folder_of(tmp_path / "out"))
    assert {profile.images for profile in stored} == {*ENDS, 48}


def test_killed_and_resumed_the_snapshots_are_the_same_to_the_bit(
    trained: Path, pack: Path, tmp_path: Path
) -> None:
    """As after a kill between steps 4 and 5, with half of a snapshot written."""
    out, before = tmp_path / "again", contents(trained)
    shutil.copytree(trained, out)
    for path in out.glob("checkpoints/*/step-*.pt"):
        if checkpoint.step_of(path) > 4:
            path.unlink()
    for path in folder_of(out).iterdir():
        if "-0000000000036." not in path.name:
            path.unlink()
    half = folder_of(out) / ".ema0.05-0000000000060.safetensors.123.tmp"
    half.write_bytes(b"half")
    run(pack, out, *POWER)
    assert contents(out) == before and len(before) == 6
    one, two = outcome(trained)[0], outcome(out)[0]
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_snapshot_is_on_the_disk_before_the_checkpoint_of_its_step(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a training that goes on from any checkpoint has every snapshot up to there."""
    seen = {}

    def save(trainer: Trainer) -> None:
        names = [path.name for path in trainer.job.snapshots.glob("*.safetensors")]
        seen[trainer.images] = sorted({int(name[-23:-12].strip("-.")) for name in names})
        real(trainer)

    real = Trainer.save
    monkeypatch.setattr(Trainer, "save", save)
    run(pack, tmp_path, *POWER, "runtime.checkpoint_images=12")
    assert seen == {n: [end for end in ENDS if end <= n] for n in range(12, 97, 12)}


@pytest.mark.slow
def test_two_ranks_go_on_from_one_and_store_the_same(pack: Path, tmp_path: Path) -> None:
    parts = []
    for strategy in ("ddp", "fsdp2"):
        more = [*POWER, f"runtime.strategy={strategy}", "train.ema_snapshot_precision=fp32"]
        run(pack, tmp_path / strategy / "one", *more)
        out = tmp_path / strategy / "two"
        run(pack, out, *more, "train.images=48")
        parts.append(words(pack, out, *more, "runtime.micro_batch=3"))
    output = train_on_ranks(2, *parts)
    assert output.count("resuming from step 4 of 8") == 2, output
    for folder in (tmp_path / "ddp", tmp_path / "fsdp2"):
        one, two = (snapshot_files.stored(folder_of(folder / name)) for name in ("one", "two"))
        assert one.keys() < two.keys() and len(one) == 6  # and the end at 48 images
        for profile, path in one.items():
            assert difference(load_weights(path), load_weights(two[profile])) < 1e-5


def test_a_training_of_half_lives_stores_nothing(pack: Path, tmp_path: Path) -> None:
    run(pack, tmp_path, "train.images=24")
    assert not [*tmp_path.glob("checkpoints/*/averages")]
    assert read_about(tmp_path / "weights.safetensors").snapshots is None


def test_an_average_is_the_weighted_sum_of_all_weights(pack: Path, tmp_path: Path) -> None:
    trainer = Trainer(train.prepare(words(pack, tmp_path, *POWER, *SIMPLE), 1), CPU)
    expected: list[Tensor] = []
    for _ in range(4):
        trainer.train_step()
        weight = next(trainer.net.parameters()).detach().double()
        for k, width in enumerate((0.05, 0.1)):
            beta = decay(width, trainer.images, 12)
            if trainer.step == 1:
                expected.append(weight.clone())
            expected[k] = beta * expected[k] + (1 - beta) * weight
    for average, value in zip(trainer.averages, expected, strict=True):
        actual = next(average.net.parameters()).double()
        torch.testing.assert_close(actual, value, atol=1e-7, rtol=1e-6)


def test_updates_of_millionths_add_up_to_a_thousandth() -> None:
    """5,000 steps as at the end of a long training, against float64; plain float32 loses 1 %."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(64, 64)
    average = PowerAverage(net, 0.1)
    exact, plain = net.weight.detach().double(), net.weight.detach().clone()
    start, batch, first = exact.clone(), 64, 4_000_000
    with torch.no_grad():
        net.weight.add_(torch.randn(64, 64, generator=generator), alpha=0.02)
    for step in range(5000):
        images = (first + step) * batch
        weight = 1 - decay(0.1, images, batch)
        assert 1e-6 < weight < 3e-6
        average.update(net.parameters(), images, batch)
        exact += weight * (net.weight.detach().double() - exact)
        plain.lerp_(net.weight.detach(), weight)
    distance = (exact - start).norm()
    assert average.remainder is not None
    actual = average.net.weight.double() + average.remainder.weight.double()
    assert (actual - exact).norm() < 1e-3 * distance
    assert (average.net.weight.double() - exact).norm() < 1e-3 * distance
    assert (plain.double() - exact).norm() > 1e-2 * distance  # so the test can fail


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_streamed_file_reads_as_one_that_the_library_wrote(
    tmp_path: Path, precision: str
) -> None:
    layers = torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(1, 1)
    net = torch.nn.Sequential(*layers)
    net.to(memory_format=torch.channels_last)
    about = WeightsAbout(config={"a": 1}, record={}, images=7, ema_width=0.05)
    snapshots.save(tmp_path / "streamed", net, precision, about, keep=True)
    snapshots.save(tmp_path / "nothing", net, precision, about, keep=False)
    assert not (tmp_path / "nothing").exists()
    dtype = snapshots.PRECISIONS[precision]
    parameters = dict(net.named_parameters())
    state = {k: v.to(dtype) if k in parameters else v for k, v in net.state_dict().items()}
    save_weights(tmp_path / "library", state, about)
    streamed, library = (load_weights(tmp_path / name) for name in ("streamed", "library"))
    assert streamed.keys() == library.keys()
    assert all(torch.equal(streamed[name], library[name]) for name in library)
    assert all(streamed[name].dtype == library[name].dtype for name in library)
    assert read_about(tmp_path / "streamed") == about
    with safe_open(tmp_path / "streamed", "np") as file:
        assert file.get_tensor("1.weight").flags.aligned


def test_a_snapshot_is_streamed_one_tensor_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that fsdp2 puts together: none is kept when the next ones come."""
    pieces: list[weakref.ref[Tensor]] = []

    def whole(value: Tensor, keep: bool) -> Tensor:
        assert sum(piece() is not None for piece in pieces) <= 1
        piece = value.detach().clone()
        pieces.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(snapshots.sharding, "whole", whole)
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    about = WeightsAbout(config={}, record={})
    snapshots.save(tmp_path / "streamed", net, "fp16", about, keep=True)
    assert len(pieces) == len(load_weights(tmp_path / "streamed")) == 8


@given(st.integers(1, 50), st.integers(1, 300), st.integers(1, 40))
def test_averages_are_stored_as_milestones_are(batch: int, every: int, steps: int) -> None:
    keys = BASE.model_copy(update={"batch": batch, "ema_snapshot_images": every})
    marked = {k for k in range(1, steps + 1) if checkpoint.is_milestone(k, batch, every)}
    assert keys.stored_images(steps * batch) == [k * batch for k in sorted(marked | {steps})]


def test_memory_is_two_averages_and_their_remainders(pack: Path, tmp_path: Path) -> None:
    train_keys = resolved("train.ema=power").train
    assert (train_keys.num_average_copies, train_keys.num_copies) == (4, 7)
    job = train.prepare(words(pack, tmp_path, *POWER), 1)
    parameters = sum(p.numel() for p in job.workload.build().parameters())
    counted = memory.step_memory(job.config, job.workload, torch.device("cpu"))
    assert counted.state == (1 + 1 + 2 + 4) * 4 * parameters


def test_the_new_keys_are_left_out_of_existing_runs() -> None:
    plain, power = resolved("experiment=tiny"), resolved("experiment=tiny", *POWER)
    assert not [key for key in stage_keys(plain, "train")["train"] if key in ("ema", "ema_widths")]
    assert stage_keys(power, "train")["train"]["ema"] == "power"
    assert {"ema_width", "ema_images"}.isdisjoint(stage_keys(plain, "sample")["sample"])

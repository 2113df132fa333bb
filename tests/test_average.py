"""Averages of any width after the training: near those tracked, refused if nothing was stored."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import average, sample, train
from pipeline.base.errors import UserError
from pipeline.config.load import DEFAULT_FILE, load_step, load_yaml
from pipeline.config.paths import weights_file
from pipeline.config.samplers import family, sampler_name
from pipeline.config.stages import stage_keys
from pipeline.training import snapshot_files
from pipeline.training.ema import PowerAverage
from pipeline.training.power_profile import Profile, coefficients
from pipeline.training.trainer import Trainer
from pipeline.training.weights_file import load_weights, read_about, save_weights
from pipeline.workflow.experiment import Experiment
from tests.conftest import resolved
from tests.test_train import difference, words

LENGTH = 960  # images, 80 steps
POWER = [
    "train.ema=power",
    f"train.images={LENGTH}",
    "train.ema_snapshot_images=120",
    "train.ema_snapshot_precision=fp32",
    "train.lr=1e-3",
    "runtime.checkpoint_images=10000",
]
BETWEEN = 0.075
TINY = ["experiment=tiny", "train.ema=power", "train.ema_snapshot_images=64"]


@pytest.fixture(scope="module")
def trained(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with stored averages, and, as tracked.pt, one tracked at a width between them."""
    out = tmp_path_factory.mktemp("trained")
    tracked: list[PowerAverage] = []
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.train_step

        def tracking(trainer: Trainer) -> None:
            if not tracked:
                tracked.append(PowerAverage(trainer.net, BETWEEN))
            step(trainer)
            tracked[0].update(trainer.parameters, trainer.images, trainer.config.train.batch)

        patch.setattr(Trainer, "train_step", tracking)
        train.main(words(pack, out, *POWER))
    torch.save(tracked[0].net.state_dict(), out / "tracked.pt")
    return out


def made(trained: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    """The average that the words ask for."""
    average.main([f"weights={trained}/weights.safetensors", f"out={out}", *more])
    return load_weights(out)


def between(trained: Path) -> float:
    """The distance of the two stored averages at the end, relative to their length."""
    (folder,) = trained.glob("checkpoints/*/averages")
    last = [snapshot_files.file_of(folder, Profile(width, LENGTH)) for width in (0.05, 0.1)]
    return difference(*map(load_weights, last))


def test_an_average_between_two_is_near_one_that_was_tracked(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    weights = made(trained, out, f"sample.ema_width={BETWEEN}")
    tracked = torch.load(trained / "tracked.pt", weights_only=True)
    assert difference(weights, tracked) < 0.02 * between(trained)
    about = read_about(out)
    final = read_about(trained / "weights.safetensors")
    assert (about.ema_width, about.images) == (BETWEEN, LENGTH)
    assert about.gpu_hours == final.gpu_hours and about.record == final.record
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_a_stored_width_gives_what_was_tracked(trained: Path, tmp_path: Path, width: float) -> None:
    weights = made(trained, tmp_path / "w.safetensors", f"sample.ema_width={width}")
    (folder,) = trained.glob("checkpoints/*/averages")
    last = load_weights(snapshot_files.file_of(folder, Profile(width, LENGTH)))
    assert difference(weights, last) < 1e-6


def test_an_earlier_moment_knows_nothing_of_what_came_later(
    trained: Path, pack: Path, tmp_path: Path
) -> None:
    """A training of that length, which stored nothing else at its end, gives the same."""
    words_of_it = [f"sample.ema_width={BETWEEN}", "sample.ema_images=480"]
    earlier = made(trained, tmp_path / "w.safetensors", *words_of_it)
    assert read_about(tmp_path / "w.safetensors").images == 480
    train.main(words(pack, tmp_path / "short", *POWER, "train.images=480"))
    short = made(tmp_path / "short", tmp_path / "s.safetensors", *words_of_it[:1])
    assert all(torch.equal(earlier[name], short[name]) for name in short)


def test_the_sum_by_hand(trained: Path, tmp_path: Path) -> None:
    """Of the folder alone, at its newest averages."""
    (folder,) = trained.glob("checkpoints/*/averages")
    out = tmp_path / "w.safetensors"
    average.main([f"snapshots={folder}", f"sample.ema_width={BETWEEN}", f"out={out}"])
    files = snapshot_files.stored(folder)
    shares = coefficients([*files], Profile(BETWEEN, LENGTH))
    tensors = [load_weights(path) for path in files.values()]
    for name, value in load_weights(out).items():
        expected = sum(c * t[name].double() for c, t in zip(shares, tensors, strict=True))
        torch.testing.assert_close(value, expected.float(), atol=1e-8, rtol=1e-6)


def test_it_is_sampled_as_any_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    made(trained, out, f"sample.ema_width={BETWEEN}")
    keys = ["experiment=tiny", "sample.num=4", f"weights={out}", f"out={tmp_path}/s"]
    sample.main([*keys, f"sample.ema_width={BETWEEN}", f"sample.ema_images={LENGTH}"])
    about = json.loads((tmp_path / "s" / "sample.json").read_text())
    assert about["sampler"].endswith(f"-ema{BETWEEN}-at{LENGTH}")
    with pytest.raises(UserError, match=r"with a width of 0.075, not sample.ema_width=0.08: give"):
        sample.prepare([*keys, "sample.ema_width=0.08"])
    with pytest.raises(UserError, match="have seen 960 images, not sample.ema_images=480"):
        sample.prepare([*keys, "sample.ema_images=480"])
    with pytest.raises(UserError, match="with a half-life of None images, not sample.ema_half"):
        sample.prepare([*keys, "sample.ema_halflife_images=64"])


def test_what_is_missing_is_named(trained: Path, tmp_path: Path) -> None:
    out, width = f"out={tmp_path}/w.safetensors", "sample.ema_width=0.07"
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (folder,) = copy.glob("checkpoints/*/averages")
    weights = f"weights={copy}/weights.safetensors"
    cases = {
        "sample.ema_width is missing": [weights, out],
        "no averages after 500 images: give sample.ema_images=480, the n": [
            *(weights, out, width, "sample.ema_images=500")
        ],
        "holds no stored averages: give snapshots=FOLDER": [f"snapshots={tmp_path}", out, width],
    }
    for message, arguments in cases.items():
        with pytest.raises(UserError, match=message):
            average.main(arguments)
    snapshot_files.file_of(folder, Profile(0.1, 240)).unlink()
    with pytest.raises(UserError, match=r"1 of 16 stored averages are missing, .*ema0.1-0+240"):
        average.main([weights, out, width])
    average.main([weights, out, width, "sample.ema_images=120"])
    path = snapshot_files.file_of(folder, Profile(0.1, 120))
    tensors, about = load_weights(path), read_about(path)
    name = min(tensors)
    save_weights(path, tensors | {name: tensors[name] * torch.inf}, about)
    with pytest.raises(UserError, match=f"values of {name} that are not finite: train with"):
        average.main([weights, out, width, "sample.ema_images=120"])
    save_weights(path, {name: tensors[name]}, about)
    with pytest.raises(UserError, match="ema0.1-0000000000120.* is of another network than"):
        average.main([weights, out, width, "sample.ema_images=120"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        average.main([weights, out, width, "sample.ema_images=120"])


def test_weights_of_half_lives_have_no_stored_averages(pack: Path, tmp_path: Path) -> None:
    train.main(words(pack, tmp_path, "train.images=12"))
    keys = [f"weights={tmp_path}/weights.safetensors", f"out={tmp_path}/w.safetensors"]
    with pytest.raises(UserError, match="not of a training with train.ema=power"):
        average.main([*keys, "sample.ema_width=0.07"])


# --- keys ----------------------------------------------------------------------------------------


def test_names_of_files_and_samplers() -> None:
    power = resolved(*TINY)
    run = "results/tiny/shapes_tiny_8-box"
    assert str(weights_file(power)) == f"{run}/train/weights.safetensors"
    chosen = resolved(*TINY, "sample.ema_width=0.075")
    assert str(weights_file(chosen)) == f"{run}/average/ema0.075-640.safetensors"
    assert sampler_name(chosen.sample) == "euler-4-g2-ema0.075"
    early = resolved(*TINY, "sample.ema_width=0.075", "sample.ema_images=128")
    assert str(weights_file(early)) == f"{run}/average/ema0.075-128.safetensors"
    assert sampler_name(early.sample) == "euler-4-g2-ema0.075-at128"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["sample.ema_halflife_images=64"], "=64 is not possible with train.ema=power: give"),
        (["train.ema=halflife", "sample.ema_width=0.1"], "ema_width=0.1 needs train.ema=power"),
        (["train.ema=halflife", "sample.ema_images=64"], "ema_images=64 needs train.ema=power"),
        (["sample.ema_images=64"], "sample.ema_images=64 needs sample.ema_width"),
        (["sample.ema_width=0.1", "sample.ema_images=70"], "the nearest is 64"),
        (["train.ema_widths=[0.05]"], "at least 2 items"),
        (["train.ema_widths=[0.05,0.05]"], "expected no number twice"),
        (["train.ema_widths=[0.05,0.3]"], "less than or equal to 0.28"),
        (["sample.ema_width=0"], "sample.ema_width=0 is not valid: use a number or null"),
    ],
)
def test_keys_that_do_not_fit_are_told_before_the_training(change: list[str], message: str) -> None:
    given = {"experiment": "tiny", "set": [*TINY[1:], *change]}
    with pytest.raises(UserError, match=message):
        Experiment(load_yaml(DEFAULT_FILE), given)


def test_only_sampling_reads_the_width() -> None:
    plain, chosen = resolved(*TINY), resolved(*TINY, "sample.ema_width=0.07")
    for stage in ("train", "evaluate", "report", "reference", "downsample"):
        assert stage_keys(plain, stage) == stage_keys(chosen, stage)
    assert stage_keys(plain, "sample") != stage_keys(chosen, "sample")


def test_a_sampler_of_before_is_not_given_the_width_of_its_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.json has no width, which means none; config.yaml may say another since."""
    keys = stage_keys(resolved(*TINY), "sample")
    (tmp_path / "results/tiny/data/sample").mkdir(parents=True)
    file = tmp_path / "results/tiny/data/sample/config.json"
    file.write_text(json.dumps(keys))
    text = DEFAULT_FILE.read_text().replace("ema_width: null", "ema_width: 0.2")
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr("pipeline.config.load.DEFAULT_FILE", tmp_path / "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_step([f"config={file}"], ())[0].sample.ema_width is None
    assert family({"sampler": "s", "config": keys}) == "euler-g2"

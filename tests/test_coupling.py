"""The step `coupling`: its file, what training takes of it, and what is refused."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import coupling, train
from pipeline.base.errors import UserError
from pipeline.data.duals import load_duals
from pipeline.data.pack import DataAbout, read_record
from pipeline.training.identity import scratch_folder
from pipeline.training.weights_file import read_about
from pipeline.trials import milestones_job
from tests.conftest import resolved, write_pack
from tests.on_ranks import on_ranks
from tests.test_train import difference, losses, outcome

WORDS = ["experiment=tiny", "train.coupling=semidiscrete", "runtime.device=cpu"]
SHORT = [
    "train.images=96",
    "train.batch=16",
    "model.channel_mult=[1]",
    "model.attention_at=[]",
    "runtime.log_images=48",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 20 images in two classes, two of them the same, and its duals."""
    folder = tmp_path_factory.mktemp("pack")
    record = write_pack(folder, num=20, size=8, classes=2)
    images = np.load(folder / "images.npy")
    images[3] = images[1]
    rewrite(folder, images)
    assert record.num_images == 20
    coupling.main([*WORDS, *place(folder), f"out={folder}/duals.npz"])
    return folder


def rewrite(folder: Path, images: np.ndarray) -> None:
    """Other images in a pack, with their record."""
    np.save(folder / "images.npy", images)
    record = read_record(folder)
    sha256 = record.sha256.model_copy(
        update={"images": hashlib.sha256(images.tobytes()).hexdigest()}
    )
    record = record.model_copy(update={"sha256": sha256})
    for name in ("manifest.json", "record.json"):
        record.write(folder / name)


def place(folder: Path) -> list[str]:
    return [f"data.path={folder}", f"record={folder}/record.json"]


def training(folder: Path, out: Path, *more: str) -> Any:
    """A short training in this process; its weights and curve."""
    train.main([*WORDS, *place(folder), *SHORT, f"out={out}", *more])
    return outcome(out)


def test_the_file_says_what_the_duals_are_of_and_how_good(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    duals = load_duals(folder / "duals.npz")
    record = read_record(folder)
    assert (duals.images_sha256, duals.labels_sha256) == (
        record.sha256.images,
        record.sha256.labels,
    )
    assert duals.within_classes and not duals.flip and duals.reached
    assert duals.deviation <= duals.worst_deviation <= duals.tolerance == 0.1
    assert np.flatnonzero(np.isinf(duals.values)).tolist() == [3]  # the copy
    # Again, the same bytes
    coupling.main([*WORDS, *place(folder), f"out={tmp_path}/again.npz"])
    assert (tmp_path / "again.npz").read_bytes() == (folder / "duals.npz").read_bytes()
    assert "each image gets the same share of the noise up to 0.0" in capsys.readouterr().out


def test_a_cap_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["coupling.max_draws=1", "coupling.tolerance=0.001"]
    coupling.main([*WORDS, *place(folder), *few, f"out={tmp_path}/few.npz"])
    assert not load_duals(tmp_path / "few.npz").reached
    printed = capsys.readouterr().out
    assert "above coupling.tolerance=0.001 after coupling.max_draws=1 noises per image" in printed


def test_a_training_resumes_to_the_bit_and_names_the_duals(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"duals={folder}/duals.npz"
    whole, curve = training(folder, tmp_path / "whole", given)
    training(folder, tmp_path / "parts", given, "train.images=48")
    weights, rows = training(folder, tmp_path / "parts", given)
    assert all((weights[name] == whole[name]).all() for name in whole)
    assert losses(rows) == losses(curve)
    # Their hash is part of what it is
    about = read_about(tmp_path / "whole" / "weights.safetensors")
    trained = DataAbout.parse(about.record, "weights")
    assert trained.sha256 is not None
    assert trained.sha256.duals == load_duals(folder / "duals.npz").sha256
    config = resolved(*WORDS, *SHORT)
    scratch = scratch_folder(tmp_path / "whole", config, trained.sha256.to_json())
    assert scratch.is_dir()
    record = read_record(folder)
    assert scratch != scratch_folder(tmp_path / "whole", config, record.sha256.to_json())
    assert "duals" not in record.sha256.to_json()
    # Its milestones are looked for there
    monkeypatch.setattr(milestones_job, "duals_file", lambda _: folder / "duals.npz")
    run = milestones_job.trained_run(config, tmp_path / "whole", None, record)
    assert run.scratch == scratch and run.data == about.record


@pytest.mark.slow
def test_two_ranks_fit_the_same_duals_and_train_the_same_model(
    folder: Path, tmp_path: Path
) -> None:
    both = [*WORDS, *place(folder)]
    for words in (
        ["pipeline.coupling", *both, f"out={tmp_path}/duals.npz"],
        ["pipeline.train", *both, *SHORT, f"duals={tmp_path}/duals.npz", f"out={tmp_path}/two"],
    ):
        on_ranks(2, *words)
    assert (tmp_path / "duals.npz").read_bytes() == (folder / "duals.npz").read_bytes()
    one, _ = training(
        folder, tmp_path / "one", f"duals={folder}/duals.npz", "runtime.micro_batch=4"
    )
    assert difference(outcome(tmp_path / "two")[0], one) < 1e-5


def test_duals_that_do_not_fit_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    def refused(sentence: str, duals: Path, *more: str, pack: Path = folder) -> None:
        with pytest.raises(UserError, match=sentence):
            training(pack, tmp_path / "refused", f"duals={duals}", *more)

    refused("the duals .*/none.npz of train.coupling=semidiscrete are missing: run `make train`",
            tmp_path / "none.npz")  # fmt: skip
    good = folder / "duals.npz"
    refused("were fitted with train.flip=false, but the training has train.flip=true", good,
            "train.flip=true")  # fmt: skip
    refused("were fitted with model.class_conditional=true", good, "model.class_conditional=false")
    # Of another pack
    shutil.copytree(folder, tmp_path / "other")
    rewrite(tmp_path / "other", 255 - np.load(folder / "images.npy"))
    refused(r"the duals .* are of a pack with sha256 \w{8}…, but this pack has", good,
            pack=tmp_path / "other")  # fmt: skip
    # Changed on the disk, or something else
    content = dict(np.load(good))
    content["values"] = content["values"] + 1
    np.savez(tmp_path / "changed.npz", **content)
    (tmp_path / "text.npz").write_text("no duals")
    for name in ("changed", "text"):
        refused("are damaged, or not of this pipeline: delete", tmp_path / f"{name}.npz")


def test_other_couplings_need_no_duals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.coupling=independent needs no duals: give train.c"):
        coupling.main(["experiment=tiny", *place(folder), f"out={tmp_path}/duals.npz"])
    assert not (tmp_path / "duals.npz").exists()
    with pytest.raises(
        UserError, match="since it is about images: give train.coupling=independent"
    ):
        resolved("experiment=lcm_mse_smoke", "train.coupling=semidiscrete")

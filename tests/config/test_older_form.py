"""Keys of earlier versions: they are read, and stage keys and identities stay as they were."""

import hashlib
import json

import pytest

from pipeline.base.errors import UserError
from pipeline.config import load, older_form
from pipeline.config.stages import STAGE_KEYS, stage_keys
from pipeline.training.identity import identity
from tests.conftest import resolved

# Of commit 99c37be: the identity of a training on a pack with the hashes of DATA, then the first 16
# digits of the sha256 of each stage's keys as canonical JSON, in the order of STAGE_KEYS.
WRITTEN = {
    "experiment=tiny": (
        *("1e5e858d8c70", "af0cfb5f58a9720e", "e8da97f1898f50fa", "331e4b15c5f96bc9"),
        *("403997e1dafa2c0e", "2b04915ab0a25934", "3a9b43c3eaf00ced", "c7bb3c6a06db3843"),
    ),
    "experiment=small": (
        *("820175df4b7e", "00c2e89c437f5d80", "b45b0dfcb47b9b70", "a68ccac80b0561e4"),
        *("403997e1dafa2c0e", "15671217d36038e2", "db2afa5056d3cead", "875142f661ed937e"),
    ),
    "experiment=small downsample.fast=true": (
        *("b74e19a74cfa", "ef69ff3e92039ac8", "41f2de266009d617", "04896b7dc4ba4fa7"),
        *("403997e1dafa2c0e", "3134a7a7f791693d", "ec18837ca2790595", "3c619fe65db00d7c"),
    ),
    "experiment=imagenet data.source=train": (
        *("c29b51dd08d6", "ecb3d652aa91f9db", "808f201052507cdd", "2b41c5edeec02819"),
        *("d1a3094637116704", "2a4b9c3dc7520690", "b5d425b85d8ffde9", "67e09a42892562a6"),
    ),
}
DATA = {"images": "0" * 64, "labels": "1" * 64}


@pytest.mark.parametrize("words", WRITTEN)
def test_identity_and_stage_keys_are_those_of_existing_runs(words: str) -> None:
    config = resolved(*words.split())
    keys = [
        json.dumps(stage_keys(config, stage), sort_keys=True)
        for stage in STAGE_KEYS
        if stage not in ("select", "milestones", "coupling", "solver")
    ]
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in keys]
    assert (identity(config, DATA), *hashes) == WRITTEN[words]


@pytest.mark.parametrize("recipe", ["box", "adm", "edm"])
def test_fast_is_part_of_the_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    older_form._note.cache_clear()
    older = resolved(f"data.recipe={recipe}", "downsample.fast=true")
    for _ in range(2):  # one line in all
        resolved(f"data.recipe={recipe}", "downsample.fast=true")
    note = f"note: downsample.fast is an older key: write data.recipe={recipe}-fast instead\n"
    assert capsys.readouterr().err == note
    assert older == resolved(f"data.recipe={recipe}-fast")
    assert older.data.recipe == f"{recipe}-fast"
    assert capsys.readouterr().err == ""


def test_stage_keys_in_the_older_form_need_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    older_form._note.cache_clear()
    keys = stage_keys(resolved("experiment=tiny", "data.recipe=edm-fast"), "train")
    assert keys["data"]["recipe"] == "edm" and keys["downsample"] == {"fast": True}
    config, _ = load.load_step([f"config={json.dumps(keys)}"], ())
    assert config.data.recipe == "edm-fast"
    assert capsys.readouterr().err == ""


def test_the_family_is_among_the_keys_unless_it_is_the_first_one() -> None:
    config = resolved("model.kind=unet")
    assert config.model.kind == "unet" and "kind" not in stage_keys(config, "train")["model"]
    tree = config.model_dump() | {"model": {"kind": "other", "width": 3}}
    assert older_form.write_older(tree)["model"] == {"kind": "other", "width": 3}


def test_a_weighting_is_among_the_keys_unless_it_is_the_first_one() -> None:
    plain, other = (resolved(f"train.weighting={kind}") for kind in ("velocity", "denoising"))
    assert "weighting" not in stage_keys(plain, "train")["train"]
    assert stage_keys(other, "train")["train"]["weighting"] == "denoising"
    assert identity(plain, DATA) == identity(resolved(), DATA) != identity(other, DATA)


def test_slow_and_fast_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="contradict each other: leave out downsample.fast"):
        resolved("data.recipe=box-fast", "downsample.fast=false")
    with pytest.raises(UserError, match=r"downsample.fast='x' is not valid: use true\|false"):
        resolved("downsample.fast=x")
    assert resolved("downsample.fast='true'").data.recipe == "box-fast"  # as Snakemake gives it
    assert resolved("data.recipe=box-fast", "downsample.fast=true").data.recipe == "box-fast"

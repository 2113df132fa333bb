"""The step that fits a solver, and the samples that use it."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import sample, solver
from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.config import load
from pipeline.config.stages import stage_keys
from pipeline.sampling.refining import MOST_ITERATIONS
from pipeline.workflow.experiment import Experiment
from tests import without_torch
from tests.conftest import resolved
from tests.on_ranks import on_ranks
from tests.random_networks import save_network

WORDS = (
    *("experiment=tiny", "runtime.device=cpu", "runtime.sample_batch=4", "sample.num=9"),
    *("sample.solver=learned", "sample.steps=4", "sample.guidance=1.5", "sample.fit_images=8"),
)
BASE = load.load_yaml(load.DEFAULT_FILE)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("net")
    return (
        f"weights={save_network(folder / 'weights.safetensors', channel_mult=[1], attention_at=[])}"
    )


@pytest.fixture(scope="module")
def fitted(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("solver") / "learned.json"
    solver.main([*WORDS, weights, f"out={file}"])
    return file


def test_its_launcher_needs_no_torch(weights: str, tmp_path: Path) -> None:
    without_torch.preflight("solver", *WORDS, weights, f"out={tmp_path}/learned.json")


def images(folder: Path, *words: str) -> np.ndarray:
    sample.main([*words, f"out={folder}"])
    return np.load(folder / "images.npy").astype(np.int64)


def test_samples_come_nearer_to_dopri5s_than_by_other_solvers(
    weights: str, fitted: Path, tmp_path: Path
) -> None:
    words = [*WORDS, weights]
    exact = images(tmp_path / "exact", *words, "sample.solver=dopri5")
    found = images(tmp_path / "learned", *words, f"solver={fitted}")
    plain = [
        images(tmp_path / name, *words, f"sample.solver={name}", f"sample.steps={steps}")
        for name, steps in (("euler", 4), ("ab2", 3), ("midpoint", 2))
    ]
    errors = [float(np.square(one - exact).mean()) for one in (found, *plain)]
    assert errors[0] < 0.5 * min(errors[1:])
    about = read_json(tmp_path / "learned" / "sample.json")
    assert (about["sampler"], about["nfe_mean"]) == ("learned-4-g1.5", 8)
    assert (tmp_path / "learned" / "strip.png").exists()


def test_its_record_says_what_it_is_for(weights: str, fitted: Path, tmp_path: Path) -> None:
    about = read_json(fitted)
    assert (about["num"], about["seed"], about["sampler"]) == (8, 2000000, "learned-4-g1.5")
    assert 5 <= len(about["tries"]) <= 24 and about["evaluations"] > 8 * 8 * len(about["tries"])
    assert about["error"] < min(one["error"] for one in about["tries"])
    assert 1 <= about["iterations"] <= MOST_ITERATIONS
    # Other weights, another sampler, another solver
    other = save_network(tmp_path / "w.safetensors", seed=1, channel_mult=[1], attention_at=[])
    out = f"out={tmp_path / 'out'}"
    with pytest.raises(UserError, match="fitted solver is one for other weights"):
        sample.main([*WORDS, f"weights={other}", f"solver={fitted}", out])
    with pytest.raises(
        UserError, match="one for learned-4-g1.5, and the sampler is learned-5-g1.5"
    ):
        sample.main([*WORDS, weights, "sample.steps=5", f"solver={fitted}", out])
    with pytest.raises(UserError, match="is read with sample.solver=learned alone"):
        sample.main([*WORDS, weights, "sample.solver=euler", f"solver={fitted}", out])
    with pytest.raises(UserError, match="nothing to fit"):
        solver.main([*WORDS, weights, "sample.solver=euler", out])


def test_batches_know_no_more_than_rounding(weights: str, fitted: Path, tmp_path: Path) -> None:
    words = [*WORDS, weights, f"solver={fitted}"]
    found = [images(tmp_path / str(b), *words, f"runtime.sample_batch={b}") for b in (1, 9)]
    assert np.abs(found[0] - found[1]).max() <= 1
    again = tmp_path / "again.json"
    solver.main([*WORDS, weights, f"out={again}"])
    assert again.read_bytes() == fitted.read_bytes()


@pytest.mark.slow
def test_two_ranks_fit_the_same(weights: str, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    on_ranks(2, "pipeline.solver", *WORDS, weights, f"out={out}")
    one, two = read_json(fitted), read_json(out)
    assert two["evaluations"] == one["evaluations"] and two["iterations"] == one["iterations"]
    assert two["error"] == pytest.approx(one["error"], rel=1e-4)
    assert two["times"] == pytest.approx(one["times"], abs=1e-3)
    rows = zip(one["coefficients"], two["coefficients"], strict=True)
    assert all(row == pytest.approx(other, rel=1e-2, abs=1e-3) for row, other in rows)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample.grid=edm"], "finds its times itself"),
        (["sample.fit_seed=0"], "sample.fit_seed=0 is among sample.seeds"),
        (["select.guidance=[1,2]"], "select samples many networks"),
        (["evaluate.milestones=true", "runtime.milestone_images=64"], "is fitted to one"),
    ],
)
def test_what_it_does_not_go_with(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Experiment(BASE, {"experiment": "tiny", "set": ["sample.solver=learned", *words]})


def test_a_rule_fits_it_for_those_samplers_alone() -> None:
    found = Experiment(
        BASE, {"experiment": "tiny", "sample": {"runs": [{}, {"solver": "learned"}]}}
    )
    plain, learned = found.samplers
    file = f"results/tiny/shapes_tiny_8-box/solver/{learned}.json"
    assert (found.solver(plain), found.solver(learned)) == ([], [file])
    assert f"solver={file}" in found.sample_settings(learned)
    assert "solver=" not in found.sample_settings(plain) + found.solver_settings(learned)
    # Its keys: not the number of samples
    keys = json.loads(found.sampler_keys("solver", learned))["sample"]
    assert "num" not in keys and "seeds" not in keys and keys["solver"] == "learned"


def test_keys_of_the_fit_change_no_other_sampler() -> None:
    keys = [
        stage_keys(resolved("experiment=tiny", *words), "sample")
        for words in ([], ["sample.fit_images=256"])
    ]
    assert keys[0] == keys[1] and "fit_images" not in keys[0]["sample"]

"""The rule `coupling`: only of experiments that need duals, once for each file of them."""

import json
from typing import Any

from pipeline.config import load
from pipeline.config.stages import stage_keys
from pipeline.workflow.experiment import Experiment
from tests.conftest import resolved
from tests.workflow.project import EVERYTHING, Project

BASE = load.load_yaml(load.DEFAULT_FILE)
DATA = "shapes_tiny_8-box"
MADE = "data.source=shapes_tiny data.pack_dir=packs"


def experiment(**given: Any) -> Experiment:
    return Experiment(BASE, {"experiment": "tiny"} | given)


def test_duals_are_shared_by_all_trainings_that_need_the_same_ones() -> None:
    train = {"coupling": "semidiscrete"}
    assert experiment().couplings == {} and experiment().trainings["train"].duals == []
    found = experiment(train=train)
    assert list(found.couplings) == ["coupling"]
    file = found.couplings["coupling"].duals
    assert file == f"results/coupling/{DATA}-classes.npz"
    assert found.trainings["train"].duals == [file]
    # A guide with other flips has others; one with the same keys has the same
    weak = {"like": "tiny", "model": {"channels": 64}, "train": train | {"flip": True}}
    runs = {"runs": [{"guide": {"experiment": "weak"}, "guidance": 2}]}
    guided = {"train": train, "experiments": {"weak": weak}, "sample": runs}
    assert list(experiment(**guided).couplings) == ["coupling", "coupling_2"]
    assert experiment(**guided).couplings["coupling_2"].duals.endswith("-classes-flip.npz")
    weak["train"]["flip"] = False
    assert list(experiment(**guided).couplings) == ["coupling"]
    # whose keys are those of the experiment
    (shared,) = experiment(**guided, coupling={"tolerance": 0.02}).couplings.values()
    assert json.loads(shared.keys)["coupling"]["tolerance"] == 0.02


def test_only_keys_that_change_duals_make_them_again() -> None:
    keys = [
        json.dumps(stage_keys(resolved("experiment=tiny", *words), "coupling"), sort_keys=True)
        for words in ([], ["train.seed=7"], ["train.lr=1"], ["coupling.tolerance=0.2"])
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    same = [stage_keys(resolved("experiment=tiny", *w), "train") for w in ([], ["coupling.max_draws=3"])]  # fmt: skip  # noqa: E501
    assert same[0] == same[1]


def test_the_rule_is_there_for_such_experiments_alone(fresh: Project) -> None:
    chain = sorted([*EVERYTHING, "extractor"])
    assert fresh.jobs(set=MADE) == chain
    jobs = fresh.jobs(set=f"{MADE} train.coupling=semidiscrete")
    assert jobs == sorted([*chain, "coupling"])
    plan = fresh.plan(set=f"{MADE} train.coupling=semidiscrete").stdout
    assert any(line.startswith("coupling  ") for line in plan.splitlines()), plan

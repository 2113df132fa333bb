"""KID, precision and recall of all samples against all real images, as other programs have them."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import evaluate
from pipeline.reporting.records import Evaluation, Protocol, Score
from pipeline.reporting.score_rows import table_rows
from pipeline.scoring import kept_features, whole_sets
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.keepers import Batch
from pipeline.scoring.measure import split
from pipeline.scoring.references import load_reference, save_reference
from pipeline.scoring.whole_sets import RealSet
from tests.drawings import drawn
from tests.evaluate_world import World, made, small, small_steps, world
from tests.report_inputs import evaluation

__all__ = ["made", "small_steps", "world"]  # fixtures

METRICS = "evaluate.metrics=[kid,prc]"


def more_samples(world: World, num: int) -> None:
    """`num` samples instead of 21."""
    for name, array in zip(("images", "labels"), drawn(num, 16, 2), strict=True):
        np.save(world.root / "samples" / f"{name}.npy", array)


def features(world: World, name: str) -> torch.Tensor:
    return small().features(world.images(name))[0]


def values(world: World) -> dict[str, Any]:
    return {m["name"].partition("_")[0]: m["value"] for m in world.result()["metrics"]}


@pytest.mark.parametrize("num", [9, 21, 50, 80])
def test_they_are_those_of_torch_fidelity(world: World, num: int) -> None:
    """Precision and recall of the same sets; KID by one subset of all images of the smaller one."""
    more_samples(world, num)
    world.run(evaluate, METRICS, "evaluate.kid_subsets=1", f"evaluate.kid_subset_size={num}")
    torch_fidelity, sides = load_torch_fidelity(), [features(world, n) for n in ("samples", "pack")]
    theirs = torch_fidelity.metric_prc.prc_features_to_metric(
        *sides, prc_neighborhood=3, save_cpu_ram=True, verbose=False
    )
    actual = values(world)
    assert actual["precision"] == pytest.approx(theirs["precision"], abs=1e-5)
    assert actual["recall"] == pytest.approx(theirs["recall"], abs=1e-5)
    assert world.result()["protocol"]["num_feature_images"] == 60
    if num > 60:  # a subset of the samples, which depends on their order
        return
    parts = split(num, 60, 2020)
    rows = np.concatenate([np.sort(parts.b), np.sort(parts.a)])
    order = np.concatenate([rows, np.setdiff1d(np.arange(60), rows)])
    options = {"kid_subsets": 1, "kid_subset_size": num, "rng_seed": 2020, "verbose": False}
    kid = torch_fidelity.metric_kid.kid_features_to_metric(sides[0], sides[1][order], **options)
    mean = kid["kernel_inception_distance_mean"]
    assert actual["kid"] == pytest.approx(mean, rel=1e-5, abs=1e-5)


def test_the_bracket_stays_as_it_was(world: World) -> None:
    """At equal numbers: samples, other real images and noise, each against part B."""
    more_samples(world, 50)
    world.run(evaluate, METRICS)
    kid, precision, recall = world.result()["metrics"]
    parts, real = split(50, 60, 2020), features(world, "pack")
    a, b = real[np.sort(parts.a)], real[np.sort(parts.b)]
    chosen = features(world, "samples")[np.sort(parts.chosen)]
    torch_fidelity = load_torch_fidelity()
    options = {"kid_subsets": 5, "kid_subset_size": 20, "rng_seed": 2020, "verbose": False}
    for side, key in ((a, "floor"), (chosen, "value")):
        expected = torch_fidelity.metric_kid.kid_features_to_metric(side, b, **options)
        mean = expected["kernel_inception_distance_mean"]
        assert kid["bracket"][key] == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert kid["bracket"]["num_images"] == 30
    for side, key in ((a, "real"), (chosen, "near")):
        theirs = torch_fidelity.metric_prc.prc_features_to_metric(
            side, b, prc_neighborhood=3, save_cpu_ram=True, verbose=False
        )
        assert precision[key] == pytest.approx(theirs["precision"])
        assert recall[key] == pytest.approx(theirs["recall"])


@pytest.mark.parametrize("num", [21, 50])
def test_they_do_not_depend_on_what_a_reference_keeps(
    world: World, monkeypatch: pytest.MonkeyPatch, num: int
) -> None:
    """With a reference of an earlier version, and with real images instead of a reference."""
    more_samples(world, num)
    world.run(evaluate, METRICS)
    expected = values(world)
    file = world.root / "reference"
    save_reference(file, load_reference(file))
    world.run(evaluate, METRICS)
    assert values(world) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    others = world.compare(world.root / "samples", world.root / "pack", METRICS)
    found = {m["name"].partition("_")[0]: m["value"] for m in others["metrics"]}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@settings(deadline=None)
@given(
    num_samples=st.integers(2, 40),
    total=st.integers(2, 60),
    held=st.integers(1, 70),
    seed=st.sampled_from([0, 7, kept_features.SEED]),
)
def test_the_real_images_are_part_b_first_and_each_once(
    num_samples: int, total: int, held: int, seed: int
) -> None:
    parts = split(num_samples, total, seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in (whole_sets, kept_features):
            patch.setattr(module, "HELD", held)
        real = RealSet(parts.a, parts.b, total, 1, seed)
        are_kept = set(kept_features.kept_rows(total))
    shown = [np.flatnonzero(h.wanted) for h in (real.in_b, real.in_a, real.in_rest)]
    in_b, in_a, rest = map(set, shown)
    assert len(in_b | in_a | rest) == sum(map(len, shown)) == min(total, held)
    assert in_b <= set(parts.b) and in_a <= set(parts.a) and rest == set(real.rest)
    assert not in_a or in_b == set(parts.b)
    assert not rest or in_a == set(parts.a)
    if seed == kept_features.SEED and len(parts.b) <= held:
        assert in_b | in_a | rest <= are_kept
    for held_rows, rows in zip((real.in_b, real.in_a, real.in_rest), shown, strict=True):
        values = torch.from_numpy(rows).float().unsqueeze(1)
        held_rows.add(Batch(rows, values, None))
    assert set(real.in_b.parts[-1].flatten().tolist()) == in_b


# --- two forms in one report -----------------------------------------------------------------


def test_files_of_both_forms_have_two_protocols() -> None:
    """An older file is read, and its numbers stand under another protocol."""
    old = evaluation(0)
    new = json.loads(json.dumps(evaluation(1)))
    new["protocol"]["num_feature_images"] = 2500
    both = [Evaluation.parse(one, "here") for one in (old, new)]
    assert both[0].protocol.num_feature_images is None
    assert {row.protocol for row in table_rows(both)} == {1, 2}


def test_older_scores_are_written_as_they_were() -> None:
    score = {"name": "precision", "label": "Precision", "value": 0.5, "num_images": 9}
    score |= {"better": "higher", "real": 0.7}
    assert Score.parse(score, "here").to_json() == score
    assert Protocol.parse({"seed": 1}, "here").to_json() == {"seed": 1}


def test_a_metrics_file_has_a_sheet(world: World) -> None:
    """Of samples that say how they were made, and of images that say nothing."""
    world.run(evaluate, "evaluate.metrics=[fid]")
    assert world.result()["sheet"] == {"num": 21}
    file = world.root / "samples" / "sample.json"
    file.write_text(json.dumps(evaluation(3)["sample"]))
    world.run(evaluate, "evaluate.metrics=[fid]")
    sheet = world.result()["sheet"]
    assert (sheet["seed"], sheet["nfe"], sheet["chosen"]) == (3, 36.0, None)

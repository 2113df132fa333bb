"""Trials are the same on any number of ranks, and a killed search goes on as if nothing had been.

Started by `on_ranks` or alone, this module is a rank that tries three guidance weights.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import Stopped, UserError
from pipeline.compute.distributed import Ranks, StopFlag, ranks
from pipeline.reporting.trials import Trial
from pipeline.sampling.job import Job, job_of
from pipeline.sampling.network import Networks, build
from pipeline.sampling.shards import checksums, sample_shard
from pipeline.scoring.keepers import Moments
from pipeline.scoring.references import Reference
from pipeline.scoring.scores import frechet
from pipeline.trials.points import Points
from pipeline.trials.trial import Judge
from tests.conftest import ROOT, resolved
from tests.on_ranks import on_ranks
from tests.random_networks import save_network
from tests.scoring.test_keepers import WIDTH, small_extractor

GUIDANCES = (1.0, 1.5, 2.0)
SIZE = 8  # px
ALONE = Ranks(0, 1, torch.device("cpu"))


def judge_of(group: Ranks) -> Judge:
    """A small network, and the statistics of random images."""
    extractor = small_extractor(SIZE)
    images = np.random.default_rng(0).integers(0, 256, (50, SIZE, SIZE, 3), np.uint8)
    moments = Moments(WIDTH)
    moments.update(extractor.features(images)[0])
    return Judge(extractor, Reference(moments.mu, moments.sigma, 50), group, StopFlag(group))


def job(weights: Path, guidance: float = 2.0, *words: str) -> Job:
    """Nineteen samples in batches of four, the last one not full."""
    keys = ["sample.num=19", "runtime.sample_batch=4", "runtime.feature_batch=3"]
    keys += ["runtime.device=cpu", f"sample.guidance={guidance}"]
    return job_of(
        resolved("experiment=tiny", *keys, *words), {"weights": str(weights), "seed": "7"}
    )


def search(weights: Path, folder: Path, group: Ranks) -> list[Trial]:
    """All trials, kept in `folder`."""
    points = Points(folder, judge_of(group))
    trials = []
    for guidance in GUIDANCES:
        work = job(weights, guidance)
        trials.append(
            points.trial(work, checksums(work, group), lambda work=work: build(work, group))
        )
    return trials


def contents(folder: Path) -> dict[str, str]:
    """All files of a folder."""
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "weights.safetensors")


@pytest.fixture(scope="module")
def alone(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trials of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    search(weights, folder, ALONE)
    return folder


@pytest.mark.slow
def test_two_ranks(weights: Path, alone: Path, tmp_path: Path) -> None:
    on_ranks(2, "tests.trials.test_points", str(weights), str(tmp_path))
    one, two = contents(alone), contents(tmp_path)
    assert len(one) == len(GUIDANCES) and one.keys() == two.keys()
    for name, text in one.items():
        first, second = json.loads(text), json.loads(two[name])
        assert second.pop("distance") == pytest.approx(first.pop("distance"), rel=1e-9)
        assert first == second


def test_as_saved_samples(weights: Path, alone: Path) -> None:
    """The distance is that of the images that rule `sample` saves."""
    work, judge = job(weights), judge_of(ALONE)
    networks = build(work, ALONE)
    images = np.concatenate(
        [sample_shard(work, networks, k, ALONE.device)[0] for k in range(0, 19, 4)]
    )
    moments = Moments(WIDTH)
    moments.update(judge.extractor.features(images)[0])
    expected = frechet(moments.mu, moments.sigma, judge.reference.mu, judge.reference.sigma)
    trials = {t.guidance: t for t in map(Trial.read, alone.iterdir())}
    assert trials[2.0].distance == pytest.approx(expected, rel=1e-6)
    assert trials[2.0].evaluations == 19 * 2 * 4 and trials[1.0].evaluations == 19 * 4
    assert trials[1.0].distance != trials[2.0].distance


@pytest.mark.slow
def test_killed(weights: Path, alone: Path, tmp_path: Path) -> None:
    """Killed once the first trial is there, the same search makes the others alone."""
    command = [sys.executable, "-m", "tests.trials.test_points", str(weights), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("*.json")):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert before.keys() & contents(alone).keys()
    search(weights, tmp_path, ALONE)
    assert {p.name: p.read_text() for p in tmp_path.glob("*.json")} == contents(alone)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_stopped(weights: Path, tmp_path: Path) -> None:
    """A signal ends a trial between two batches, and keeps nothing of it."""
    points, work = Points(tmp_path, judge_of(ALONE)), job(weights)
    sums = checksums(work, ALONE)

    def networks() -> Networks:
        signal.raise_signal(signal.SIGTERM)
        return build(work, ALONE)

    with pytest.raises(Stopped, match="the same command resumes"):
        points.trial(work, sums, networks)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "word", ["sample.num=20", "sample.steps=5", "sample.guidance_interval=[0,0.5]"]
)
def test_another_key_is_another_trial(weights: Path, tmp_path: Path, word: str) -> None:
    points = Points(tmp_path, judge_of(ALONE))
    first, second = job(weights), job(weights, 2.0, word)
    sums = checksums(first, ALONE)
    assert points.file(first, sums) != points.file(second, sums)
    assert points.file(first, sums) != points.file(first, sums._replace(weights="0"))
    other = job(weights, 2.0, "runtime.sample_batch=9", "runtime.device=auto")
    assert points.file(first, sums) == points.file(other, sums)


def test_damaged(weights: Path, tmp_path: Path) -> None:
    points, work = Points(tmp_path, judge_of(ALONE)), job(weights)
    sums = checksums(work, ALONE)
    points.file(work, sums).write_text("{}")
    with pytest.raises(UserError, match=r"is not a trial of a network .*delete it"):
        points.trial(work, sums, lambda: build(work, ALONE))


if __name__ == "__main__":
    with ranks("cpu", {}, 60) as group:
        search(Path(sys.argv[1]), Path(sys.argv[2]), group)

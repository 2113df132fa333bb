"""The plan: what the engine's dry run says, as a person reads it."""

import pytest

from pipeline import plan
from tests.conftest import resolved

DRY_RUN = """
[Sat Nov 21 20:10:44 2026]
rule train:
    input: results/data/x.json
    output: results/x/train/weights.safetensors, results/x/train/curve.jsonl
    jobid: 3
    reason: Missing output files: results/x/train/curve.jsonl; Input files updated by another job
    threads: 8
    resources: tmpdir=/tmp, gpu=4, env=IMAGENET_DIR CUDA_VISIBLE_DEVICES?, settings=runtime.x=3
localrule report:
    output: results/x/report/summary.txt
    resources: tmpdir=/tmp, env=, settings=
localrule all:
    input: results/x/report/summary.txt
    resources: tmpdir=/tmp
"""


def test_jobs_of_a_dry_run() -> None:
    train, report = plan.parse_dry_run(DRY_RUN)
    assert (train.rule, train.resource("gpu")) == ("train", "4")
    assert train.resource("env") == "IMAGENET_DIR CUDA_VISIBLE_DEVICES?"
    assert train.fields["threads"] == "8"
    assert (report.rule, report.resource("gpu"), report.resource("env")) == ("report", "", "")


def test_variables_show_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, _) = plan.parse_dry_run(DRY_RUN)
    assert plan.variables(train) == "IMAGENET_DIR=(NOT SET)"
    monkeypatch.setenv("IMAGENET_DIR", "/data")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert plan.variables(train) == "IMAGENET_DIR=/data CUDA_VISIBLE_DEVICES=2,3"


def test_sizes_of_the_reference_experiment() -> None:
    text = plan.facts(resolved())
    assert "295.9 M parameters" in text  # ADM's ImageNet-64 model has 296 M
    assert "563,013 steps of 2,048, 900.0 epochs of 1,281,167" in text
    assert "15.8 GB" in text  # 1,281,167 x (64 x 64 x 3 + 8) bytes


def test_bytes_as_a_person_reads_them() -> None:
    assert [plan.size(n) for n in (5, 1500, 2.5e6, 4e12)] == ["5 B", "1.5 kB", "2.5 MB", "4.0 TB"]

"""The plan: what Snakemake's dry run says, as a person reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import plan
from pipeline.base.errors import UserError
from pipeline.compute import gpus
from pipeline.config.schema import Config
from pipeline.data.pack import read_record
from pipeline.flow.made_up import made_up
from pipeline.flow.workload import FlowMatching
from pipeline.launching import leases
from pipeline.training import calibration
from pipeline.training.meter import peak_memory
from pipeline.training.trainer import Trainer
from pipeline.workflow import dry_run, sizes
from tests.conftest import resolved, write_pack

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
    train, report = dry_run.parse_dry_run(DRY_RUN)
    assert (train.rule, train.resource("gpu")) == ("train", "4")
    assert train.resource("env") == "IMAGENET_DIR CUDA_VISIBLE_DEVICES?"
    assert train.fields["threads"] == "8"
    assert (report.rule, report.resource("gpu"), report.resource("env")) == ("report", "", "")


REFUSED = "Config MD5: 1f2e\n\nBuilding DAG of jobs...\nMissingRuleException:\nNo rule to make x\n"


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        (REFUSED, "", "MissingRuleException:\nNo rule to make x"),
        ("", "error: no\n", "error: no"),
        ("Building DAG of jobs...\n", "error: no\n", "error: no"),
    ],
)
def test_last_words_of_snakemake(stdout: str, stderr: str, words: str) -> None:
    notice = "Using workflow specific profile profiles/default for setting default arguments.\n"
    assert dry_run.why_refused(stdout, notice + stderr) == words


@pytest.mark.parametrize("key", ["train.start", "sample.guide", "evaluate.weights"])
def test_an_absent_file_is_named_by_its_key(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}=none is not a file: give a file of weights"):
        plan.main(["--config", "experiment=tiny", f"set=['{key}=none']"])


def test_the_first_weights_are_in_the_plan(tmp_path: Path) -> None:
    config = resolved("experiment=tiny", f"train.start={tmp_path}/w.safetensors")
    assert f"  start         {tmp_path}/w.safetensors" in sizes.facts(config).splitlines()
    assert "  start " not in sizes.facts(resolved("experiment=tiny"))


def test_the_cost_of_a_search_is_in_the_plan() -> None:
    words = ["experiment=tiny", "select.guidance=[1,3]", "select.max_tries=7", "select.num=20"]
    line = "  select        up to 7 tries of 20 images with 2 seed(s) = 280 images"
    heun = ["sample.solver=heun", "sample.grid=sigma", "select.seeds=[5,6]"]
    shown = sizes.facts(resolved(*words, *heun)).splitlines()
    assert f"{line}, {280 * 7 * 2:,} evaluations of networks" in shown
    shown = sizes.facts(resolved(*words, "sample.solver=dopri5", "select.seeds=[5,6]")).splitlines()
    assert any(text.startswith(line) and "tolerance" in text for text in shown)
    assert "  select " not in sizes.facts(resolved("experiment=tiny"))


def test_variables_show_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, _) = dry_run.parse_dry_run(DRY_RUN)
    assert plan.variables(train) == "IMAGENET_DIR=(NOT SET)"
    monkeypatch.setenv("IMAGENET_DIR", "/data")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert plan.variables(train) == "IMAGENET_DIR=/data CUDA_VISIBLE_DEVICES=2,3"


def test_sizes_of_the_reference_experiment() -> None:
    text = sizes.facts(resolved())
    assert "295.9 M parameters" in text  # ADM's ImageNet-64 model has 296 M
    assert "563,013 steps of 2,048 = 1,153,050,300 images, 900.0 epochs of 1,281,167" in text
    assert "15.8 GB" in text  # 1,281,167 x (64 x 64 x 3 + 8) bytes
    # weights, two averages, a remainder, two moments: 4 bytes each
    assert "7.1 GB each, 2 kept" in text
    assert "1.8 GB" in text  # three seeds of 50,000 images
    assert "reference     1.3 GB" in text  # (150,000 x 4 + 2,049 x 8) x 2,048 bytes
    assert "35.4 GB in all" in text  # 15.75 + 1.26 + 2 x 7.10 + 2 x 1.18 + 3 x 0.61
    assert "dopri5-1e-05-g1.2-ema0: 50,000 images with each of the seeds 0, 1, 2" in text


def test_sizes_of_another_family() -> None:
    text = sizes.facts(resolved("experiment=edm2_s"))
    assert "280.2 M parameters" in text
    assert "524,288 steps of 2,048 = 1,073,741,824 images, 838.1 epochs of 1,281,167" in text
    assert "heun-32-sigma: 50,000 images with each of the seeds 0, 1, 2" in text


def test_stored_averages_are_in_the_plan() -> None:
    words = ["train.ema=power", "train.images=1073741824", "sample.ema_halflife_images=null"]
    runs = "sample.runs=[{ema_width: 0.075}, {ema_width: 0.075, steps: 3}, {}]"
    text = sizes.facts(resolved("experiment=edm2_s", *words, "sample.ema_width=null", runs))
    # 2 x 128 x 280.2 M x 2 bytes
    assert "snapshots     143.5 GB: 2 averages at 128 times, 560.4 MB each in fp16" in text
    assert "weights       1.1 GB for each of 2 average(s)" in text
    # weights, two averages, their remainders, two moments
    assert "7.8 GB each, 2 kept" in text
    assert "snapshots" not in sizes.facts(resolved("train.ema=halflife"))


def test_every_sampler_has_a_row_and_counts() -> None:
    runs = "[{solver: heun, steps: 9}, {solver: rk4, num: 1000, seeds: [7]}]"
    text = sizes.facts(resolved("sample.ema_halflife_images=null", f"sample.runs={runs}"))
    assert "heun-9-g1.2: 50,000 images with each of the seeds 0, 1, 2" in text
    assert "rk4-32-g1.2: 1,000 images with seed 7" in text
    assert "sample files  1.9 GB" in text  # 151,000 x (64 x 64 x 3 + 8) bytes


def test_milestones_are_counted_as_kept() -> None:
    assert "4 kept" in sizes.facts(resolved("runtime.milestone_images=576525150"))


def test_balanced_samples_of_an_uneven_pack_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pack(tmp_path, num=40, size=8, classes=10)
    record = read_record(tmp_path)
    file = tmp_path / "record.json"
    monkeypatch.setattr(plan.paths, "record_file", lambda _: file)
    config = resolved("experiment=tiny")
    for counts, noted in (([4] * 10, False), ([31, *[1] * 9], True)):
        per_class = dict(zip(record.classes, counts, strict=True))
        record.model_copy(update={"per_class": per_class}).write(file)
        assert ("sample.classes=histogram" in sizes.facts(config)) == noted
    drawn = resolved("experiment=tiny", "sample.classes=histogram")
    assert "would have to change class" not in sizes.facts(drawn)
    chosen = sizes.facts(resolved("experiment=tiny", "sample.classes=[1, 5]"))
    assert "samples are of 2 chosen classes" in chosen and "would have to" not in chosen
    with pytest.raises(UserError, match="no class has the number 10"):
        sizes.facts(resolved("experiment=tiny", "sample.classes=[1, 10]"))


def of_ten(config: Config) -> FlowMatching:
    return made_up(config, 10)


def test_a_calibration_has_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0,1,2")
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with leases.lease(2), plan.leased_device(resolved("experiment=tiny")):
        assert gpus.visible() == ["2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with leases.lease(3), plan.leased_device(resolved("experiment=tiny", "runtime.device=cpu")):
        assert gpus.visible() == ["0", "1", "2"]


@pytest.mark.slow
def test_a_calibration_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: (taken.append(1), step(self)))
    config = resolved("experiment=tiny", "runtime.device=cpu")
    found = calibration.calibrate(config, of_ten)
    assert len(taken) == calibration.WARM_UP + calibration.STEPS
    assert (found.steps, found.batch, found.device) == (calibration.STEPS, 32, "CPU")
    assert found.images_per_s > 0 and found.peak_bytes > 1e8 and found.mfu is None


def test_a_calibration_ends_in_time() -> None:
    config = resolved("experiment=tiny", "runtime.device=cpu")
    assert calibration.calibrate(config, of_ten, seconds=0.0).steps == 1


def test_a_peak_of_memory_before_a_calibration_does_not_count() -> None:
    """As that of another training of the same plan, whose network guides."""
    config = resolved("experiment=tiny", "runtime.device=cpu")
    np.ones(500_000_000, np.uint8)  # freed at once
    before = peak_memory(torch.device("cpu"))
    assert calibration.calibrate(config, of_ten, seconds=0.0).peak_bytes < before


def test_a_large_network_gets_few_images_on_a_cpu() -> None:
    large, small = resolved(), resolved("experiment=small")
    assert calibration.images_a_step(large, made_up(large, 1000), 8, cpu=True) == 1
    assert calibration.images_a_step(large, made_up(large, 1000), 8, cpu=False) == 64
    assert calibration.images_a_step(small, made_up(small, 10), 1, cpu=True) == 64


def test_hours_by_hand() -> None:
    gpu = calibration.Calibration(500.0, 40_000_000_000, 64, 20, "NVIDIA H100 80GB HBM3", 0.333)
    text = plan.expectation(resolved(), gpu, 8)
    assert "80.1 hours on 8 GPU(s)" in text  # 1,153,050,300 images / (500 x 8) / 3600
    assert "641" in text and "40.0 GB of each GPU" in text and "MFU 33%" in text
    cpu = calibration.Calibration(100.0, 500_000_000, 64, 20, "CPU", None)
    text = plan.expectation(resolved("experiment=small"), cpu, 1)
    assert "0.133 hours on the CPU" in text and "500.0 MB of the process" in text  # 48,000 images


def test_gpus_that_would_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.gpus, "visible", lambda: ["0", "1", "2"])
    assert plan.ranks(resolved(), 2) == 2
    assert plan.ranks(resolved("runtime.device=cpu"), 2) == 1
    assert plan.ranks(resolved("launch.launcher=none"), 2) == 1
    with pytest.raises(UserError, match="8 GPUs are asked for but 3 visible"):
        plan.ranks(resolved(), 8)
    monkeypatch.setattr(plan.gpus, "visible", lambda: [])
    assert plan.ranks(resolved(), 2) == 1


def test_bytes_as_a_person_reads_them() -> None:
    assert [plan.size(n) for n in (5, 1500, 2.5e6, 4e12)] == ["5 B", "1.5 kB", "2.5 MB", "4.0 TB"]

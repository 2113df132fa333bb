"""The whole chain on real photographs at 32 and 64 px, through both front doors. Minutes long."""

import json
import re
import sys

import pytest

from pipeline.bench.photos import write_photos
from tests.workflow.project import Project, copy_code

pytestmark = pytest.mark.slow


# Two processes of one thread each
SMALL = "model.channel_mult=[1,1] model.attention_at=[8] launch.threads=1"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A fresh copy of the project, and IMAGENET_DIR on a class tree of real photographs."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "images", per_class=24, size=128)
    code = copy_code(folder / "project")
    (code / ".venv").symlink_to(sys.prefix)
    return Project(code, folder / "images")


def checked(project: Project, command: list[str]) -> str:
    done = project.run(command)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout + done.stderr


def test_snakemake_at_32(project: Project) -> None:
    command = ["snakemake", "--cores", "8", "--resources", "gpu=4"]
    words = ["--config", "experiment=photos", f"set=data.resolution=32 train.images=960 {SMALL}"]
    output = checked(project, [*command, *words])
    assert "experiment photos, data train_32-box" in output
    run = project.folder / "results/photos/train_32-box"
    (metrics,) = (run / "metrics").glob("*-seed0.json")
    names = [m["name"] for m in json.loads(metrics.read_text())["metrics"]]
    assert "frechet_efflite0_96" in names
    rows = [json.loads(line) for line in (run / "train/curve.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_make_train_at_64_lies_beside(project: Project) -> None:
    make = [
        "make",
        "-o",
        ".venv/installed",
        "EXPERIMENT=photos",
        "RES=64",
        f"SET=train.images=64 {SMALL}",
    ]
    output = checked(project, [*make, "train"])
    assert "resolution 64 from the configuration" in output
    for res in (32, 64):
        run = project.folder / f"results/photos/train_{res}-box"
        assert (run / "train/weights.safetensors").exists()
    plan = checked(project, [*make, "plan"])
    left = [line.split()[0] for line in plan.splitlines() if re.match(r"\w+ .*Missing", line)]
    assert sorted(left) == ["evaluate", "reference", "report", "sample"]

"""make and Snakemake's own executor take a folder as it was typed, whatever its name."""

import json
from pathlib import Path

import pytest

from pipeline.bench.photos import PHOTOS, write_photos
from tests.workflow.project import Project, copy_code

PLACE = 'it\'s "a" $HOME `id`; #1 & b'


@pytest.mark.slow
def test_a_folder_reaches_a_job_through_make(tmp_path: Path) -> None:
    """As it does through Slurm: tests/launching/test_cluster.py."""
    project = Project(copy_code(tmp_path / "project"), None)
    (project.folder / ".venv").mkdir()
    (project.folder / ".venv" / "installed").touch()
    images = tmp_path / PLACE
    write_photos(images, per_class=2, size=20)
    quoted = "'" + str(images).replace("'", "''") + "'"
    places = f"data.source=train data.dir={quoted} data.pack_dir={quoted}"
    done = project.run(["make", "data", "EXPERIMENT=tiny", "GPUS=0", f"SET={places}"])
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((project.folder / "results/data/train_8-box.json").read_text())
    assert record["num_images"] == 2 * len(PHOTOS)
    assert (images / "train_8/box/manifest.json").exists()

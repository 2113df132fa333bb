"""A record as large as that of iNaturalist's 10,000 classes: made again as it was, nothing runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.pack import Hashes, Record
from tests.conftest import ROOT

SNAKEFILE = """
rule all:
    input: "weights"
rule data:
    input: "record.json"
rule downsample:
    output: "record.json"
    shell: "cp whole.json {output}"
rule train:
    input: "record.json"
    output: "weights"
    shell: "touch {output}"
"""


def snakemake(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_large_record_that_is_the_same_runs_nothing(tmp_path: Path) -> None:
    classes = [
        f"{k:05d}_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae" for k in range(10**4)
    ]
    Record(
        source="train",
        resolution=64,
        recipe="box",
        classes=classes,
        per_class=dict.fromkeys(classes, 300),
        sha256=Hashes(images="0" * 64, labels="0" * 64),
        num_images=3 * 10**6,
    ).write(tmp_path / "whole.json")
    assert (tmp_path / "whole.json").stat().st_size > 10**6
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    profile = tmp_path / "profiles" / "default"
    profile.parent.mkdir()
    profile.symlink_to(ROOT / "profiles" / "default")
    snakemake(tmp_path)
    snakemake(tmp_path, "--forcerun", "downsample", "--", "data")
    assert "Nothing to be done" in snakemake(tmp_path, "--dry-run")

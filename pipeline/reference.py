"""Features of a pack, with which every evaluation on it compares: statistics, and some as they are.

    python -m pipeline.reference config=... record=RECORD.json out=FILE.npz
    python -m pipeline.reference reference=FILE export=FILE.npz

The first form checks that the pack is that of the record and streams it once, never mirrored; under
torchrun several processes share it, with the same result, and after a kill the same command goes on
after the sections that are finished. The file holds mean and covariance of all features, and the
features that evaluations need themselves, see scoring/kept_features. The second form writes mu and
sigma alone, as the evaluators of ADM, EDM and EDM2 read them.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError, run_main
from pipeline.base.imports import importing
from pipeline.config.load import load_step
from pipeline.config.paths import out_file
from pipeline.config.schema import Config
from pipeline.data.pack_job import PackJob
from pipeline.launching.handover import hand_over
from pipeline.scoring.reference_job import job_of
from pipeline.scoring.references import export_reference, load_reference
from pipeline.steps import STEPS

STEP = STEPS["reference"]


def prepare(argv: list[str]) -> PackJob:
    """Read and check what the words name; raises UserError for the first that does not fit."""
    return job_of(*load_step(argv, STEP.words))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """All checks that need no network."""
    return {} if exported(paths) else job_of(config, paths).identity


def exported(path_words: Mapping[str, str]) -> bool:
    """Do what `export=FILE` asks for; False without it."""
    if ("export" in path_words) != ("reference" in path_words):
        raise UserError("an export needs both reference=FILE and export=FILE.npz: give both")
    if "export" not in path_words:
        return False
    export_reference(
        out_file(Path(path_words["export"])), load_reference(Path(path_words["reference"]))
    )
    print(f"mu and sigma of {path_words['reference']}: {path_words['export']}", flush=True)
    return True


def main(argv: list[str]) -> None:
    """Make the reference of the pack that `config` names, or export one."""
    hand_over(STEP.module, argv, STEP.words)
    config, paths = load_step(argv, STEP.words)
    if exported(paths):
        return
    job = job_of(config, paths)
    with importing():  # of torch, which the launcher does without
        from pipeline.scoring.reference_loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)

"""Features of a pack, with which every evaluation on it compares: statistics, and some as they are.

    python -m pipeline.reference config=... record=RECORD.json out=FILE.npz
    python -m pipeline.reference reference=FILE export=FILE.npz

The first form checks that the pack is that of the record and streams it once, never mirrored; under
torchrun several processes share it, with the same result, and after a kill the same command goes on
after the sections that are finished. The file holds mean and covariance of all features, and the
features that evaluations need themselves, see scoring/kept_features. The second form writes mu and
sigma alone, as the evaluators of ADM, EDM and EDM2 read them.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import sha256_json
from pipeline.base.npy import sha256_npy
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, pack_folder, reference_file
from pipeline.config.schema import Config
from pipeline.data.pack_job import PackJob, pack_job
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.scoring.extractors import KINDS, Extractor, load_extractor
from pipeline.scoring.keepers import Moments
from pipeline.scoring.kept_features import SEED, kept_rows, passes, save_real_side
from pipeline.scoring.references import Reference, export_reference, load_reference
from pipeline.scoring.sections import moments_of, run
from pipeline.steps import STEPS

STEP = STEPS["reference"]


def prepare(argv: list[str]) -> PackJob:
    """Read and check what the words name; raises UserError for the first that does not fit."""
    return job_of(*load_step(argv, STEP.words))


def job_of(config: Config, path_words: dict[str, str]) -> PackJob:
    """The job that a configuration and the paths of the command line ask for."""
    config = resolve_image_set(config)
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    job = pack_job(STEP.name, config, path_words, reference_file(config))
    if len(job.pack) < 2:
        raise UserError("the pack holds one image, and a covariance needs two: use a larger pack")
    return job


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, Any]:
    """All checks that need no network."""
    return {} if exported(paths) else job_of(config, paths).identity


def check_images(job: PackJob, group: Ranks) -> None:
    """Raise UserError on all ranks if the pack's images are not those of its record.

    Rank 0 hashes them, before anything is made of them.
    """
    expected = job.pack.record.sha256.images
    sha256 = sha256_npy(pack_folder(job.config) / "images.npy") if group.first else ""
    if (found := group.share(sha256)) != expected:
        raise UserError(
            f"the pack's images have sha256 {found[:8]}…, its record says {expected[:8]}…: "
            "run `make data` to build the pack again"
        )


def sections_folder(job: PackJob, extractor: Extractor) -> Path:
    """The folder of finished sections: its name is a hash of all that their content depends on."""
    work = {"pack": job.pack.record.sha256.images, "extractor": extractor.weights_sha256}
    keys = {"name": extractor.name, "batch": job.config.runtime.feature_batch, "seed": SEED}
    kept = {"kept": len(kept_rows(len(job.pack)))}
    return folder_of_all(job.out) / sha256_json(work | keys | kept)[:12]


def folder_of_all(out: Path) -> Path:
    """The folder of the sections for the file `out`."""
    return out.with_name(f".{out.name}.sections")


def make(job: PackJob, extractor: Extractor, group: Ranks) -> None:
    """Write the reference of the job's pack: statistics, features of real images and of noise."""
    # Section by section
    check_images(job, group)
    runtime, folder = job.config.runtime, sections_folder(job, extractor)
    real, noise = passes(folder, extractor, job.pack, runtime.feature_batch)
    for each in (real, noise):
        run(each, group, runtime.progress_seconds)

    # One file of all
    if group.first:
        reference = describe(job, extractor, moments_of(real))
        save_real_side(job.out, reference, real, noise)
        shutil.rmtree(folder_of_all(job.out))
        print(f"reference of {len(job.pack):,} images by {extractor.title}: {job.out}")
    group.barrier()


def describe(job: PackJob, extractor: Extractor, moments: Moments) -> Reference:
    """Moments of the features of all images, and what they depend on."""
    record = job.pack.record
    return Reference(
        mu=moments.mu,
        sigma=moments.sigma,
        num_images=moments.num,
        pack_sha256=record.sha256.images,
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        data=record.name,
        resolution=record.resolution,
    )


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
    settings, device = job.config.evaluate, job.config.runtime.device
    with ranks(device, job.identity, job.config.launch.join_seconds) as group:
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        group.agree({"sha256 of the extractor": extractor.weights_sha256})
        make(job, extractor, group)


if __name__ == "__main__":
    run_main(main)

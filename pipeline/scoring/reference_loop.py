"""The reference of a pack, made on all ranks section by section."""

import shutil
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json
from pipeline.base.npy import sha256_npy
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.paths import pack_folder
from pipeline.data.pack_job import PackJob
from pipeline.scoring.extractors import Extractor, load_extractor
from pipeline.scoring.keepers import Moments
from pipeline.scoring.keeping import passes, save_real_side
from pipeline.scoring.kept_features import SEED, kept_rows
from pipeline.scoring.references import Reference
from pipeline.scoring.sections import moments_of, run


def work(job: PackJob) -> None:
    """Make the reference on every rank; rank 0 writes the file."""
    settings, device = job.config.evaluate, job.config.runtime.device
    with ranks(device, job.identity, job.config.launch.join_seconds) as group:
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        group.agree({"sha256 of the extractor": extractor.weights_sha256})
        make(job, extractor, group)


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

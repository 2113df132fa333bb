"""Features of a pack, with which every evaluation on it compares: statistics, and some as they are.

    python -m pipeline.reference config=... record=RECORD.json out=FILE.npz
    python -m pipeline.reference reference=FILE export=FILE.npz

The first form streams the pack once, never mirrored, and checks on the way that it is the pack of
the record; under torchrun several processes share it, with the same result. The file holds mean and
covariance of all features, and the features that evaluations need themselves, see
scoring/kept_features. The second form writes mu and sigma alone, as the evaluators of ADM, EDM and
EDM2 read them.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base.errors import UserError, run_main
from pipeline.base.npy import sha256_npy
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.load import load_step
from pipeline.config.machine_keys import Runtime
from pipeline.config.paths import out_file, pack_folder, reference_file
from pipeline.config.schema import Config
from pipeline.data.pack import Pack
from pipeline.data.pack_job import PackJob, pack_job
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.scoring.extractors import KINDS, Extractor, load_extractor
from pipeline.scoring.keepers import Moments, stream
from pipeline.scoring.kept_features import SEED, Spool, noise_images, save_real_side, spools
from pipeline.scoring.references import Reference, export_reference, load_reference
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


def measure(
    pack: Pack, images: Path, extractor: Extractor, runtime: Runtime, group: Ranks, kept: Spool
) -> Reference:
    """Moments of the features of all images, and what they depend on; whole on every rank.

    `kept` takes the features of some of them. Raises UserError if the file `images` of the pack
    is not that of its record: rank 0 hashes it while the features are made.
    """
    # Features and, beside them, the hash
    moments = Moments(extractor.width, extractor.device)
    rows = np.arange(len(pack))
    with ThreadPoolExecutor(1) as thread:
        hashing = thread.submit(sha256_npy, images) if group.first else None
        features_of = extractor.of(lambda part: pack.images[part])
        stream(features_of, runtime, group, "reference", rows, [moments, kept])
        sha256 = hashing.result() if hashing else ""
    # All ranks stop if the hash is another one
    record, expected = pack.record, pack.record.sha256.images
    if not int(group.sum(torch.tensor(int(sha256 == expected)))):
        raise UserError(
            f"the pack's images have sha256 {sha256[:8]}…, its record says {expected[:8]}…: "
            "run `make data` to build the pack again"
        )
    # Moments and their origin
    return Reference(
        mu=moments.mu,
        sigma=moments.sigma,
        num_images=moments.num,
        pack_sha256=expected,
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        data=record.name,
        resolution=record.resolution,
    )


def make(job: PackJob, extractor: Extractor, group: Ranks) -> None:
    """Write the reference of the job's pack: statistics, features of real images and of noise."""
    # Features of the pack
    runtime, num, size = job.config.runtime, len(job.pack), (job.pack.record.resolution,) * 2
    with spools(job.out, num, runtime.feature_batch, extractor.width, group) as (real, noise):
        images = pack_folder(job.config) / "images.npy"
        reference = measure(job.pack, images, extractor, runtime, group, real)
        # Those of noise
        features_of = extractor.of(lambda rows: noise_images(rows, size, SEED))
        stream(features_of, runtime, group, "noise", noise.rows, [noise])
        # One file of all
        if group.first:
            save_real_side(job.out, reference, real, noise)
            print(f"reference of {num:,} images by {extractor.title}: {job.out}")
        group.barrier()


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

"""Duals of the images of a pack, for trainings with train.coupling=semidiscrete.

    python -m pipeline.coupling config=... record=RECORD.json out=FILE.npz

One number per image, such that each gets the same share of all noise: pipeline/flow/semidual.py.
Within each class if the network knows classes. Noises are drawn by their number, and under torchrun
several processes share them out, with the same result.
"""

import numpy as np
import torch

from pipeline.base.errors import UserError, run_main
from pipeline.base.progress import Progress
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import duals_file, pack_folder
from pipeline.config.schema import Config
from pipeline.data.duals import Duals, save_duals
from pipeline.data.pack import check_arrays
from pipeline.data.pack_job import PackJob, pack_job
from pipeline.data.reader import Reader, moved, open_reader
from pipeline.flow.atoms import Atoms, distinct
from pipeline.flow.semidual import Fit, Problem, fit
from pipeline.flow.transport import cells_of
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.steps import STEPS

STEP = STEPS["coupling"]


def prepare(argv: list[str]) -> PackJob:
    """Read and check what the words name; raises UserError for the first that does not fit."""
    return job_of(*load_step(argv, STEP.words))


def job_of(config: Config, path_words: dict[str, str]) -> PackJob:
    """The job that a configuration and the paths of the command line ask for."""
    config = resolve_image_set(config)
    if config.train.coupling != "semidiscrete":
        raise UserError(
            f"train.coupling={config.train.coupling} needs no duals: give "
            "train.coupling=semidiscrete, or leave this step out"
        )
    return pack_job(STEP.name, config, path_words, duals_file(config))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """All checks that need no device."""
    return job_of(config, paths).identity


class Fitting:
    """The fits of a job, one per class or one of all images, on the ranks of a group."""

    def __init__(self, job: PackJob, group: Ranks) -> None:
        self.job, self.group, config = job, group, job.config
        setting = config.runtime.data_on_device
        self.reader: Reader = open_reader(job.pack, 0, group.device, setting, 0, group.first)
        cells = cells_of(np.array(job.pack.labels), config.model.class_conditional)
        self.cells = [rows for rows in cells if len(rows)]
        self.progress = Progress("coupling", len(job.pack), config.runtime.progress_seconds)

    def say(self, num_done: int, text: str) -> None:
        """A line about a fit, if it is the only one or it is time for a line."""
        if self.group.first and (len(self.cells) == 1 or self.progress.due()):
            self.progress.show(num_done, text)

    def one(self, rows: np.ndarray, num_done: int) -> tuple[np.ndarray, Fit]:
        """The fit of one class, rows (N,) of the pack, and which of them are atoms (K,)."""
        pack, config = self.job.pack, self.job.config
        kept, copies = distinct(pack.images, rows, config.train.flip)
        shape = tuple(pack.images.shape[1:])
        on_device = moved(kept, self.group.device)
        atoms = Atoms(on_device, int(np.prod(shape)), self.reader.take, held=True)
        weights = torch.from_numpy(copies / copies.sum())
        problem = Problem(atoms, weights, shape, config.train.flip, self.group)
        keys = config.coupling
        found = fit(problem, keys.tolerance, keys.max_draws, lambda text: self.say(num_done, text))
        return kept, found

    def all(self) -> Duals:
        """The duals of all images."""
        # Class by class
        config, record = self.job.config, self.job.pack.record
        values = np.full(len(self.job.pack), -np.inf)
        fits, squares, num_done = [], 0.0, 0
        for rows in self.cells:
            kept, found = self.one(rows, num_done)
            values[kept] = found.duals.numpy()
            fits.append((found, found.draws / len(kept)))
            squares += found.deviation**2 * len(rows)
            num_done += len(rows)
        # All together
        worst, tolerance = max(found.deviation for found, _ in fits), config.coupling.tolerance
        return Duals(
            values=values,
            images_sha256=record.sha256.images,
            labels_sha256=record.sha256.labels,
            within_classes=config.model.class_conditional,
            flip=config.train.flip,
            tolerance=tolerance,
            deviation=(squares / num_done) ** 0.5,
            worst_deviation=worst,
            draws=max(draws for _, draws in fits),
            reached=worst <= tolerance,
        )


def sentence(duals: Duals, config: Config) -> str:
    """How far the shares of noise are from uniform, and what to do if that is too far."""
    if duals.reached:
        return duals.in_words()
    return (
        f"note: {duals.in_words()}, which is above coupling.tolerance={duals.tolerance:g} after "
        f"coupling.max_draws={config.coupling.max_draws} noises per image: some images are trained "
        "on more often than others; give more draws, or a larger tolerance"
    )


def main(argv: list[str]) -> None:
    """Fit the duals of the pack that `config` names."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv)
    check_arrays(job.pack, pack_folder(job.config))
    runtime, launch = job.config.runtime, job.config.launch
    with ranks(runtime.device, job.identity, launch.join_seconds) as group:
        duals = Fitting(job, group).all()
        if group.first:
            save_duals(job.out, duals)
            print(f"{sentence(duals, job.config)}: {job.out}", flush=True)
        group.barrier()


if __name__ == "__main__":
    run_main(main)

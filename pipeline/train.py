"""Train the network: pack -> weights.safetensors (averaged) and curve.jsonl.

Each further half-life of the average gives a weights-ema<images>.safetensors.

    torchrun --standalone --nproc-per-node=4 -m pipeline.train data.path=PACK train.lr=2e-4

Everything needed to resume is in `checkpoints/<hash of the experiment keys>/`, which the workflow
does not declare and so never deletes; checkpoints=FOLDER names another folder, which must hold
checkpoints, belong to a run that has none yet, or not exist.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.concept import pack as documents_pack
from pipeline.concept.pack import Documents, check_record, open_documents
from pipeline.config.image_sets import check_classless
from pipeline.config.load import load_step, validate
from pipeline.config.model_keys import TwoTowerKeys
from pipeline.config.paths import (
    duals_file,
    out_folder,
    pack_folder,
    run_folder,
    weights_files,
)
from pipeline.config.schema import Config
from pipeline.config.stages import write_config
from pipeline.config.words import merge
from pipeline.data.duals import check_duals, load_duals, with_duals
from pipeline.data.pack import Pack, Record, open_pack, read_record
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.steps import STEPS
from pipeline.training.batch_size import images_of_a_rank
from pipeline.training.given_folder import check_given
from pipeline.training.identity import rank_identity, scratch_folder
from pipeline.training.start_weights import (
    Start,
    check_kept,
    check_normaliser,
    check_origin,
    identified,
)

if TYPE_CHECKING:  # torch is loaded by the ranks alone, not by the launcher, which calls preflight
    from pipeline.training.job import Job
    from pipeline.training.workload import Workload

STEP = STEPS["train"]


class Data(NamedTuple):
    """The data of a training, checked, and their identity."""

    pack: Any
    sha256: Any  # JSON
    num_classes: int | None  # None: they have none


def flow_matching(config: Config, pack: Pack) -> "Workload":
    """The velocity of a flow from noise to the images of a pack."""
    from pipeline.flow.workload import FlowMatching

    return FlowMatching(config, pack)


def discrete_flow_matching(config: Config, pack: Pack) -> "Workload":
    """The values of the images of a pack, out of masks."""
    from pipeline.flow.discrete_workload import DiscreteFlow

    return DiscreteFlow(config, pack)


def next_sentence(config: Config, documents: Documents) -> "Workload":
    """The next sentence of the documents of a pack, by regression or out of noise."""
    from pipeline.concept.denoising_workload import DenoisedSentence
    from pipeline.concept.workload import NextSentence

    denoises = isinstance(config.model, TwoTowerKeys)
    return (DenoisedSentence if denoises else NextSentence)(config, documents)


# The workloads by the key `workload`: each gets the configuration and the pack.
WORKLOADS: dict[str, Callable[[Config, Any], "Workload"]] = {
    "flow": flow_matching,
    "discrete_flow": discrete_flow_matching,
    "concept": next_sentence,
}


def prepare(argv: list[str], world: int) -> "Job":
    """The run that the words describe. Raises UserError about the first problem."""
    with importing():
        from pipeline.training.job import Job
    config, paths = load_step(argv, STEP.words)
    config, data, start = read(config, paths, world)
    out, scratch = folders(config, paths, data)
    return Job(config, WORKLOADS[config.workload](config, data.pack), out, scratch, start)


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """Check what needs no GPU, and wait for another trainer of this run to end."""
    config, data, _ = read(config, paths, world)
    locks.wait_until_free(folders(config, paths, data)[1])
    return rank_identity(config, data.sha256)


def read(config: Config, paths: dict[str, str], world: int) -> tuple[Config, Data, Start | None]:
    """The configuration with the names that its data have and the hash of its first weights, the
    data, and the file of these weights, checked without a GPU.

    Raises UserError with one sentence about the first problem.
    """
    # Images or documents
    config, data = (open_concept if config.workload == "concept" else open_images)(config, paths)
    # Equal shares
    images_of_a_rank(config, world)
    # First weights
    if config.train.start is not None:
        names = weights_files(config.train).values()
        check_kept(config.train.start, [results_folder(config, paths) / name for name in names])
    config, start = identified(config)
    path = None if start is None else start.path
    check_origin(path, config, data.num_classes)
    check_normaliser(path, data.sha256)
    return config, data, start


def open_images(config: Config, paths: dict[str, str]) -> tuple[Config, Data]:
    """A pack of images, and the configuration with the names that it has."""
    # The image set
    config = resolve_image_set(config)
    if config.data.path and "record" not in paths:
        config = adopt_pack(config)

    # The pack, checked
    folder = pack_folder(config)
    record = Record.read(Path(paths["record"])) if "record" in paths else read_record(folder)
    pack = open_pack(folder, record)
    check_classless(f"the pack in {folder}", record.classes, config.model.class_conditional)
    if config.train.coupling == "semidiscrete":
        pack = open_duals(config, paths, pack)
    return config, Data(pack, pack.record.sha256.to_json(), len(record.classes))


def open_duals(config: Config, paths: dict[str, str], pack: Pack) -> Pack:
    """`pack` with the duals that the word `duals` names; raises UserError if they are others."""
    path = Path(paths.get("duals", duals_file(config)))
    duals = load_duals(path)
    check_duals(path, duals, pack.record, config.model.class_conditional, config.train.flip)
    return with_duals(pack, duals)


def open_concept(config: Config, paths: dict[str, str]) -> tuple[Config, Data]:
    """A pack of documents; raises UserError if `record` is not its record."""
    documents = open_documents(config)
    if "record" in paths:
        check_record(documents, documents_pack.pack_folder(config), Path(paths["record"]))
    return config, Data(documents, documents.about["sha256"], None)


def folders(config: Config, paths: dict[str, str], data: Data) -> tuple[Path, Path]:
    """The folder of the results and that of the checkpoints.

    Raises UserError if files cannot be written there, or a given folder holds no checkpoint.
    """
    out = out_folder(results_folder(config, paths))
    if "checkpoints" not in paths:
        return out, scratch_folder(out, config, data.sha256)
    folder = Path(paths["checkpoints"])
    if os.environ.get("RANK", "0") == "0":  # the others may see it while rank 0 makes it
        check_given(folder)
    return out, folder


def results_folder(config: Config, paths: dict[str, str]) -> Path:
    """The folder of the weights and the curve."""
    return Path(paths.get("out", run_folder(config) / "train"))


def adopt_pack(config: Config) -> Config:
    """`config` with source, resolution and recipe as the pack at data.path has them."""
    record = read_record(pack_folder(config))
    data = {key: getattr(record, key) for key in ("source", "resolution", "recipe")}
    return validate(merge(config.model_dump(), {"data": data}))


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv, int(os.environ.get("WORLD_SIZE", 1)))
    if os.environ.get("RANK", "0") == "0":
        write_config(job.out, job.config, "train")
    with importing():
        from pipeline.training.loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)

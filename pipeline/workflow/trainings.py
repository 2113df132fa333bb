"""The trainings of an experiment: its own, and those of the experiments that sample.guide names.

Of a guide the data, and all that does not belong to an experiment (runtime, launch), are those of
the experiment that it guides. Its results lie in results/<experiment>/, or in
results/<experiment>-<images>/ if it is trained for another number of images than its experiment
says, so that each training is made once, whoever needs it.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.config.load import layered, validate
from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.config.paths import duals_file, run_folder, weights_file, weights_files
from pipeline.config.samplers import guide_name
from pipeline.config.schema import Config, Guide, Sample
from pipeline.config.stages import settings_words, stage_keys
from pipeline.config.words import merge, nested
from pipeline.training import start_weights

SHARED = ("data", "downsample", "runtime", "launch")  # sections of the experiment that is guided


class Training:
    """One training of the workflow: its files, keys and settings."""

    def __init__(self, config: Config) -> None:
        """Raises UserError if train.start is not a file, or a result of this training."""
        self.config = config
        self.run = str(run_folder(config))
        self.folder = f"{self.run}/train"
        self.weights = [f"{self.folder}/{name}" for name in weights_files(config.train).values()]
        self.settings = settings_words(config)
        is_semidiscrete = config.train.coupling == "semidiscrete"
        self.duals = [str(duals_file(config))] if is_semidiscrete else []
        if config.train.start is not None:
            start_weights.locate(config.train.start)
            start_weights.check_kept(config.train.start, map(Path, self.weights))

    @cached_property
    def keys(self) -> str:
        """Its keys as canonical JSON, with the hash of the file in train.start."""
        config = start_weights.identified(self.config)[0]
        return json.dumps(stage_keys(config, "train"), sort_keys=True)

    def outgrown(self) -> list[str]:
        """Weights that are missing beside others, which a training by other keys has made.

        Snakemake does not compare the keys of a job if one of its files was never made: these must
        be asked for, or old weights pass for new.
        """
        missing = [file for file in self.weights if not Path(file).exists()]
        if missing in ([], self.weights):
            return []
        return missing if has_other_keys(self.folder, self.keys) else []


def has_other_keys(folder: str, keys: str) -> bool:
    """Whether a stage's folder was made with other keys than these, as canonical JSON."""
    config = Path(folder, "config.json")
    return config.exists() and read_json(config) != json.loads(keys)


def by_rule(configs: Iterable[Config]) -> dict[str, Training]:
    """Trainings by the names of their rules: train, guide, guide_2, ...; one for each folder."""
    by_folder: dict[Path, Config] = {}
    for config in configs:
        by_folder.setdefault(run_folder(config), config)
    names = ("train", "guide", *(f"guide_{k}" for k in range(2, len(by_folder))))
    return {name: Training(c) for name, c in zip(names, by_folder.values(), strict=False)}


def recipes(samples: Iterable[Sample]) -> list[Guide]:
    """The experiments that guide some of the samplers, each once."""
    guides = [s.guide for s in samples if s.may_guide and isinstance(s.guide, Guide)]
    return list(dict.fromkeys(guides))


def guide_config(
    files: Mapping[str, object], command_line: Mapping[str, object], config: Config, guide: Guide
) -> Config:
    """The configuration that trains a guide of `config`; its `sample` says which average guides.

    `files` and `command_line` hold the named experiments. Raises UserError if there is none of that
    name, it is not valid for the data, or it knows classes and the network that it guides does not,
    or the reverse.
    """
    # The experiment on the same data
    experiments = {"experiments": command_line.get("experiments") or {}}
    try:
        tree = layered(files, {**experiments, "experiment": guide.experiment})
        shared = config.model_dump(include=set(SHARED))
        trained = validate(merge(tree, {**shared, "sample": {"runs": []}}))
    except UserError as error:
        raise UserError(f"sample.guide: {error}") from error

    # Its length and average
    changes: dict[str, object] = {"sample": average_keys(guide)}
    if guide.images not in (None, trained.train.images):
        changes |= {"experiment": guide_name(guide)}
        changes |= nested("train.images", guide.images)
    check_classes(trained, config, guide)
    check_workload(trained, config, guide)
    result = Config.model_validate(merge(trained.model_dump(), changes))
    return config if run_folder(result) == run_folder(config) else result


def average_keys(guide: Guide) -> dict[str, object]:
    """The keys of `sample` that choose the guide's average, at the end of its training."""
    widths = {"ema_width": guide.ema_width, "ema_images": None}
    return {"ema_halflife_images": guide.ema_halflife_images, **widths}


def check_classes(trained: Config, config: Config, guide: Guide) -> None:
    """Raise UserError unless both know classes, or neither does."""
    knows, other = (c.model.class_conditional for c in (trained, config))
    if knows != other:
        raise UserError(
            f"sample.guide: the experiment {guide.experiment} has model.class_conditional="
            f"{str(knows).lower()}, and {config.experiment} {str(other).lower()}: a guide must "
            "know the classes of the network that it guides"
        )


def check_workload(trained: Config, config: Config, guide: Guide) -> None:
    """Raise UserError unless both are networks of velocities, or of the same tokens."""
    if (kind := kind_in_words(trained)) != (other := kind_in_words(config)):
        raise UserError(
            f"sample.guide: the experiment {guide.experiment} has {kind}, and {config.experiment} "
            f"{other}: a guide must be of the same kind as the network that it guides"
        )


def kind_in_words(config: Config) -> str:
    """The predictions of a network: its workload, and how many tokens if it is one of tokens."""
    model, workload = config.model, f"workload={config.workload}"
    if isinstance(model, DiscreteUNetKeys):
        return f"{workload} and model.values={model.values}"
    return workload


def guide_file(config: Config, guide: Guide) -> Path:
    """The file of weights that guides, of the training `config`.

    Raises UserError if the training makes no such average.
    """
    sample = config.sample.model_copy(update=average_keys(guide))
    try:
        return weights_file(config.model_copy(update={"sample": sample}))
    except UserError as error:
        raise UserError(f"sample.guide, experiment {guide.experiment}: {error}") from error

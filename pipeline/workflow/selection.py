"""The rule `select` of an experiment: what it takes and makes, and who uses its choice."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.samplers import check_guidance, most_evaluations
from pipeline.config.schema import Config, Guide
from pipeline.config.selection import base_sampler, most_guided
from pipeline.workflow.trainings import has_other_keys, recipes


class Selection:
    """The files of rule `select`. Without the section `select` there is no such rule."""

    def __init__(self, config: Config, guiding: Mapping[Guide, str]) -> None:
        """`guiding`: the files of the experiments that guide. Raises UserError if there is no such
        average, or the network is to guide itself and cannot.
        """
        base, sample = base_sampler(config), most_guided(config)
        self.choice = str(paths.choice_file(config))
        self.folder = self.choice.rpartition("/")[0]
        # What it takes
        if config.select and config.select.ema_widths:
            paths.average_file(base)  # stored at that moment of the training
            keys = {"ema_width": None, "ema_images": None}
            base = base.model_copy(update={"sample": base.sample.model_copy(update=keys)})
        self.searched_weights = str(paths.weights_file(base))
        try:
            check_guidance(sample, config.model.class_conditional, config.train.label_dropout)
        except UserError as error:
            raise UserError(f"the section select: {error}") from error
        self.guide: list[str] = []
        self.settings = ""
        if sample.guide is not None and sample.guidance != 1:
            file = sample.guide if isinstance(sample.guide, str) else guiding[sample.guide]
            self.guide = [file]
            self.settings = "" if isinstance(sample.guide, str) else shlex.join([f"guide={file}"])
        # What it makes
        self.weights = averages(config)

    def outgrown(self, keys: str) -> list[str]:
        """The chosen average if it is missing beside a choice by other keys: see Training."""
        missing = [file for file in self.weights if not Path(file).exists()]
        is_old = Path(self.choice).exists() and has_other_keys(self.folder, keys)
        return missing if is_old else []


def averages(config: Config) -> list[str]:
    """The file of the chosen average; none if no width is searched."""
    searches_widths = config.select is not None and config.select.ema_widths is not None
    return [str(paths.chosen_weights_file(config))] if searches_widths else []


def all_recipes(config: Config) -> list[Guide]:
    """The experiments that guide a sampler, or that which is searched, each once."""
    searched = [most_guided(config)] if config.select else []
    return recipes([*config.sample.samplers, *searched])


def cost(config: Config) -> str:
    """The cost of the search at most, in a line; empty without the section `select`."""
    # Images
    select = config.select
    if select is None:
        return ""
    num_images = select.most_tries * select.num * len(select.seeds)
    text = (
        f"up to {select.most_tries} tries of {select.num:,} images with {len(select.seeds)} "
        f"seed(s) = {num_images:,} images"
    )
    # Evaluations
    sample = most_guided(config)
    if sample.adaptive:
        return f"{text}; their evaluations of networks depend on the tolerance"
    intervals = select.intervals or (sample.guidance_interval,)  # multistep solvers start anew
    tried = (sample.model_copy(update={"guidance_interval": interval}) for interval in intervals)
    each = max(most_evaluations(one) or 0 for one in tried)
    return f"{text}, {num_images * each:,} evaluations of networks"

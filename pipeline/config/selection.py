"""The section `select` beside the others: what it needs of them."""

from pipeline.base.errors import UserError
from pipeline.config.schema import Config, Sample


def check_select(config: Config) -> None:
    """Raise UserError if `select` does not fit the other sections, or a sampler needs it."""
    # Samplers that wait for the choice
    select, samplers = config.select, config.sample.samplers
    if select is None:
        if any(sample.selected for sample in samplers):
            raise UserError(
                "sample.selected=true needs the section select, which says what is chosen: give "
                "select.ema_widths or select.guidance, or sample.selected=false"
            )
        return

    # Seeds that nobody reports
    reported = {seed for sample in samplers for seed in sample.seeds}
    if both := sorted(reported & set(select.seeds)):
        raise UserError(
            f"select.seeds and sample.seeds both hold {both[0]}: the chosen sampler would be "
            "scored on the images that it was chosen by, so give other seeds to one of them"
        )

    # Samplers of the networks that are tried
    for sample in (sampler for sampler in samplers if sampler.selected):
        check_tried(config, sample)

    # Times of guidance
    if select.intervals is not None and most_guided(config).guidance == 1:
        raise UserError(
            "select.intervals are times of guidance, and no try is guided, with sample.guidance=1: "
            "give select.guidance or another sample.guidance, or select.intervals=null"
        )

    # Averages that can be made
    if select.ema_widths is not None and config.train.ema != "power":
        raise UserError(
            "select.ema_widths needs train.ema=power, whose averages are made after the training: "
            "give both, or select.ema_widths=null"
        )


def check_tried(config: Config, sample: Sample) -> None:
    """Raise UserError if a selected sampler has another network than the sampler that is searched.

    The values that are chosen for one network say little of another.
    """
    base, end = base_sampler(config).sample, config.train.last_images
    keys = {"ema_halflife_images", "ema_width", "guide"} - {*searched(config)}
    different = [key for key in sorted(keys) if getattr(sample, key) != getattr(base, key)]
    if (sample.ema_images or end) != (base.ema_images or end):
        different.append("ema_images")
    if different:
        raise UserError(
            f"a sampler of sample.runs with selected=true has another {different[0]} than sample, "
            "with which select tries: give the same to both"
        )


def check_learned(config: Config) -> None:
    """Raise UserError if a solver is fitted to images that are reported, or to no one network."""
    for sample in (sampler for sampler in config.sample.samplers if sampler.learned):
        if sample.fit_seed in sample.seeds:
            raise UserError(
                f"sample.fit_seed={sample.fit_seed} is among sample.seeds: the solver would be "
                "scored on the images that it was fitted by, so give another seed to one of them"
            )
    if config.select:
        check_any_network("select", base_sampler(config).sample)
    if config.evaluate.milestones:
        check_any_network("evaluate.milestones=true", config.sample.samplers[0])


def check_any_network(user: str, sample: Sample) -> None:
    """Raise UserError if the solver with which `user` samples many networks is fitted to one."""
    if sample.learned:
        raise UserError(
            f"{user} samples many networks, and sample.solver=learned is fitted to one: give "
            "another solver in sample, and the learned one in sample.runs, not as the first"
        )


def searched(config: Config) -> list[str]:
    """The keys of `sample` that `select` chooses; none without that section."""
    if config.select is None:
        return []
    axes = {
        "ema_width": config.select.ema_widths,
        "guidance": config.select.guidance,
        "guidance_interval": config.select.intervals,
    }
    return [key for key, values in axes.items() if values is not None]


def base_sampler(config: Config) -> Config:
    """The configuration whose `sample` is the sampler that is searched: `sample` without runs."""
    plain = config.sample.model_copy(update={"runs": (), "selected": False})
    return config.model_copy(update={"sample": plain})


def most_guided(config: Config) -> Sample:
    """The searched sampler with the guidance weight of the tries that is farthest from 1.

    So it is guided if any try is, by weights below 1 too.
    """
    sample = base_sampler(config).sample
    weights = config.select.guidance if config.select else None
    if not weights:
        return sample
    return sample.model_copy(update={"guidance": max(weights, key=lambda w: abs(w - 1))})

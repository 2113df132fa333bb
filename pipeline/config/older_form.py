"""Keys as earlier versions wrote them, still read, and still the form of stage keys.

A run's identity is a hash over its stage keys, and Snakemake compares them to decide what to run
again. So that no existing run starts anew, stage keys keep the older form: `data.recipe: box` and
`downsample.fast: true` is what everything else calls `data.recipe: box-fast`, `model.kind` is
left out if it is `unet`, once the only family, and so is each other key of LATER with its value
there.
"""

import os
import sys
from collections.abc import Mapping
from functools import cache

from pydantic import TypeAdapter, ValidationError

from pipeline.base.errors import UserError
from pipeline.base.json_objects import mapping_at
from pipeline.config.words import merge, nested

# Keys of a section that came later, and the value, as JSON has it, that is left out
LATER: dict[str, dict[str, object]] = {
    "downsample": {"allow_ignored": 0},
    "concept": {
        "pairs": False,
        "prompt_sentences_column": "prompt_sentences",
        "prompt_vectors_column": "prompt_sentences_sonar_emb",
        "held_out": 0.0,
        "denoising_steps": 40,
        "guidance": 3.0,
        "guidance_rescale": 0.7,
        "initial_noise": 0.6,
        "noise_seed": 0,
    },
    "model": {"kind": "unet"},
    "train": {
        "start": None,
        "weighting": "velocity",
        "mask_exponent": 3.0,
        "token_loss": "cross_entropy",
        "lr_cycle_images": None,
        "warmup_from": None,
        "eps": 1e-8,
        "ema": "halflife",
        "ema_widths": [0.05, 0.10],
        "ema_snapshot_images": 8388608,
        "ema_snapshot_precision": "fp32",
    },
    "sample": {
        "fit_images": 256,
        "fit_seed": 2000000,
        "divergence_free": "none",
        "temperature": 1.0,
        "categorical": "float32",
        "ema_width": None,
        "ema_images": None,
        "selected": False,
    },
}
WORKLOAD = "flow"  # once the only one: left out, too
OF_SOME = {"num", "seeds", "runs"}  # keys of `sample` that some stages do not read
FAST = "-fast"  # end of the recipes that decode JPEGs at a fraction of their size


def read_older(tree: Mapping[str, object]) -> dict[str, object]:
    """`tree` with downsample.fast, if it is there, as part of data.recipe.

    Raises UserError if downsample.fast is not true or false, or contradicts data.recipe.
    """
    # Nothing to translate
    downsample, recipe = tree.get("downsample"), _recipe(tree)
    if not isinstance(downsample, Mapping) or "fast" not in downsample:
        return dict(tree)

    # Text or truth
    try:  # Snakemake's --config gives words as text
        fast = TypeAdapter(bool).validate_python(downsample["fast"])
    except ValidationError as error:
        value = downsample["fast"]
        raise UserError(f"downsample.fast={value!r} is not valid: use true|false") from error

    # Both must agree
    if recipe.endswith(FAST) and not fast:
        raise UserError(
            f"data.recipe={recipe} and downsample.fast=false contradict each other: "
            "leave out downsample.fast"
        )

    # Moved to the recipe
    tree = {**tree, "downsample": {k: v for k, v in downsample.items() if k != "fast"}}
    if fast and recipe and not recipe.endswith(FAST):
        tree = merge(tree, nested("data.recipe", recipe + FAST))
    return tree


def write_older(tree: Mapping[str, object]) -> dict[str, object]:
    """All keys of a configuration in the older form: the inverse of `read_older`."""
    recipe = _recipe(tree)
    tree = merge(tree, nested("data.recipe", recipe.removesuffix(FAST)))
    tree = merge(tree, nested("downsample.fast", recipe.endswith(FAST)))
    sections = [name for name in LATER if tree[name] is not None]
    tree = {**tree, **{name: older_section(name, mapping_at(tree, name)) for name in sections}}
    return {k: v for k, v in tree.items() if (k, v) != ("workload", WORKLOAD)}


def older_section(name: str, section: Mapping[str, object]) -> dict[str, object]:
    """A section without the keys of LATER that have the value which used to go without saying."""
    later = LATER[name].items()
    return {key: value for key, value in section.items() if (key, value) not in later}


def with_later(tree: Mapping[str, object], every: Mapping[str, object]) -> dict[str, object]:
    """The keys of a stage with those that `older_section` left out, whatever an experiment says.

    `every` has all keys of each section: one that lacks others, too, stays as it is.
    """
    result = dict(tree)
    for name, later in LATER.items():
        section = tree.get(name)
        keys = {*mapping_at(every, name)}  # of a section that is null as a rule: any will do
        if isinstance(section, Mapping) and keys - {*section} - OF_SOME <= {*later}:
            result[name] = {**later, **section}
    # A whole section `model` is that of a training
    if "kind" in mapping_at(result, "model"):
        result.setdefault("workload", WORKLOAD)
    return result


def note_older(tree: Mapping[str, object]) -> None:
    """Print one line, once per job, for each older key in values that a person has written."""
    if "fast" in mapping_at(tree, "downsample"):
        recipe = _recipe(read_older(tree))
        _note(f"note: downsample.fast is an older key: write data.recipe={recipe} instead")


@cache
def _note(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def _recipe(tree: Mapping[str, object]) -> str:
    """The value of data.recipe; empty if there is none."""
    data = tree.get("data")
    return str(data.get("recipe") or "") if isinstance(data, Mapping) else ""

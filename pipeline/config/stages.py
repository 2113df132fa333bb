"""The keys that each stage reads, and what its command line and config.json hold of them."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from pipeline.base.files import write_json
from pipeline.base.json_objects import mapping_at
from pipeline.config.concept_keys import OF_DENOISING, OF_SCORES, OF_TRAINING, Concept
from pipeline.config.load import DEFAULT_FILE, load_yaml
from pipeline.config.messages import known_keys
from pipeline.config.older_form import write_older
from pipeline.config.schema import Config, Evaluate, Sample
from pipeline.config.words import lookup, merge, nested

# --- what a step sees --------------------------------------------------------------------------


def stage_keys(config: Config, stage: str) -> dict[str, object]:
    """The resolved keys that `stage` reads, nothing else: the content of its config.json."""
    tree = write_older(config.model_dump(mode="json"))
    result: dict[str, object] = {}
    keys = (CONCEPT_KEYS if config.workload == "concept" else STAGE_KEYS)[stage]
    assert config.data.source != "auto" or "data.source" not in keys
    for key in keys:
        section, _, name = key.partition(".")
        within = mapping_at(tree, section) if name else tree
        if (name or section) in within:  # else left out: see older_form
            result = merge(result, nested(key, lookup(tree, key)))
    return result


def rank_keys(config: Config, stage: str) -> dict[str, object]:
    """The keys that all ranks of `stage` must have in common: its own, and most of runtime."""
    runtime = config.runtime.model_dump(mode="json", exclude=set(OF_A_MACHINE))
    return {"step": stage, **stage_keys(config, stage), "runtime": runtime}


def settings_words(config: Config) -> str:
    """Places, runtime and launch as shell-quoted `key=value` words for a step's command line.

    Only those that differ from config.yaml, which the step reads itself.
    """
    tree, base = config.model_dump(mode="json"), load_yaml(DEFAULT_FILE)
    keys = [k for k in known_keys() if k.startswith(("runtime.", "launch."))]
    keys = [k for k in keys if not k.startswith("runtime.gpus")] + list(PLACES)
    keys = [k for k in keys if not isinstance(lookup(tree, k), dict)]
    changed = [k for k in keys if lookup(tree, k) != lookup(base, k)]
    return shlex.join(f"{k}={yaml_word(lookup(tree, k))}" for k in changed)


def yaml_word(value: Any) -> str:
    """A scalar as one YAML word, quoted if it must be."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()
    return text.removesuffix("...").strip()


# The keys that each stage reads, which are all that can make it run again. Places
# (data.dir, ...), runtime and launch are in none of them. A file that evaluate.weights names is an
# input of the rule extractor; of one that train.start names, the hash is among the keys.
UNSELECTED = ("num", "seeds", "runs", "selected")
DATA_KEYS = ("data.source", "data.resolution", "data.recipe", "downsample.fast")
MILESTONES = ("milestones", "milestone_num")
SAMPLED = tuple(key for key in Sample.model_fields if key not in ("seeds", "runs"))
SCORED = tuple(key for key in Evaluate.model_fields if key not in ("weights", *MILESTONES))
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "downsample": (*DATA_KEYS, "data.expected_images", "data.expected_classes", "downsample"),
    "train": ("workload", *DATA_KEYS, "model", "train"),
    # those that say which duals they are
    "coupling": (
        *DATA_KEYS,
        *("model.class_conditional", "train.coupling", "train.flip", "coupling"),
    ),
    # the keys of one set of samples: not the list of seeds, nor the other samplers
    "sample": (
        *DATA_KEYS,
        *(f"sample.{k}" for k in SAMPLED),
    ),
    # the keys of one sampler, whatever its number of images
    "solver": (
        *DATA_KEYS,
        *(f"sample.{k}" for k in SAMPLED if k != "num"),
    ),
    # the sampler that is searched: its number of images is another
    "select": (
        *DATA_KEYS,
        "select",
        *(f"sample.{k}" for k in Sample.model_fields if k not in UNSELECTED),
        "evaluate.extractor",
    ),
    "extractor": ("evaluate.extractor",),
    "reference": (*DATA_KEYS, "evaluate.extractor"),
    "evaluate": (*DATA_KEYS, *(f"evaluate.{k}" for k in SCORED)),
    # the keys of one sampler, whatever its number of images and its moment of the training
    "milestones": (
        *DATA_KEYS,
        *(f"sample.{k}" for k in SAMPLED if k not in (*UNSELECTED, "ema_images")),
        *(f"evaluate.{k}" for k in ("extractor", *MILESTONES)),
    ),
    "report": (*DATA_KEYS, "report"),
}
# Those of documents; the file of a suffix is a place, and the pack says what it held.
OTHERS = ("suffix", "prompt_suffix", *OF_TRAINING, *OF_SCORES, *OF_DENOISING)
PREPARED = tuple(key for key in Concept.model_fields if key not in OTHERS)
PACK = ("workload", "concept.name", "concept.dimension", "concept.pairs")  # of a pack that is there
CONCEPT_KEYS: dict[str, tuple[str, ...]] = {
    "prepare": ("workload", *(f"concept.{key}" for key in PREPARED)),
    "train": (
        "workload",
        *(f"concept.{key}" for key in (*PREPARED, *OF_TRAINING)),
        *("model", "train"),
    ),
    "predict": (
        *PACK,
        *(f"concept.{key}" for key in (*OF_TRAINING, *OF_SCORES, *OF_DENOISING)),
        "sample.precision",
    ),
    "score": (*PACK, "concept.scale"),
    "report": PACK,
}
# Keys of runtime in which machines of one job may differ.
OF_A_MACHINE = ("gpus", "workers", "start_method", "data_on_device", "progress_seconds")
PLACES = (
    *("data.dir", "data.layout", "data.pack_dir", "data.path"),
    *("train.start", "evaluate.weights"),
)


def write_config(folder: Path, config: Config, stage: str) -> None:
    """`config.json` of a stage's folder: the resolved keys that the stage read, nothing else."""
    write_json(folder / "config.json", stage_keys(config, stage))

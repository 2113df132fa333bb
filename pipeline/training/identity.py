"""Identity of a training run: the keys that shape the weights, and the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.files import sha256_json
from pipeline.base.json_objects import mapping_at
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys, stage_keys
from pipeline.training.learning_rate import ENDING


def identity_keys(config: Config) -> dict[str, object]:
    """The keys that shape the weights.

    The training length is among them only if the learning rate falls towards its end.
    """
    keys = stage_keys(config, "train")
    if config.train.lr_schedule not in ENDING:
        return without_length(keys)
    return keys


def without_length(keys: Mapping[str, object]) -> dict[str, object]:
    """The keys of a training without its length."""
    train = {k: v for k, v in mapping_at(keys, "train").items() if k != "images"}
    return {**keys, "train": train}


def identity(config: Config, data_sha256: Any) -> str:
    """12 hex digits over all that shapes the weights: the keys, and the hash of the data."""
    parts = {"keys": identity_keys(config), "data": data_sha256}
    if config.pairs_within_classes:  # earlier versions paired noise and images across classes
        parts["pairs"] = "within classes"
    return sha256_json(parts)[:12]


def rank_identity(config: Config, data_sha256: Any) -> dict[str, object]:
    """Values that all ranks of a training must share."""
    return {**rank_keys(config, "train"), "data": {"sha256": data_sha256}}


def scratch_folder(out: Path, config: Config, data_sha256: Any) -> Path:
    """The folder below `out` for the checkpoints and metrics of exactly this experiment."""
    return out / "checkpoints" / identity(config, data_sha256)


def differences(saved: dict[str, object], ours: dict[str, object], prefix: str = "") -> list[str]:
    """`key=value there (here value)` for all keys of `ours` that differ, and for those that only
    `saved` has, except the training length.
    """
    # Keys of either side
    lines = []
    for key in sorted(saved.keys() | ours.keys()):
        saved_value, our_value, name = saved.get(key), ours.get(key), f"{prefix}{key}"
        if isinstance(saved_value, dict) and isinstance(our_value, dict):
            lines += differences(saved_value, our_value, f"{name}.")
        elif saved_value != our_value and not (name == "train.images" and key not in ours):
            lines.append(f"{name}={saved_value} (here {our_value})")
    return lines

"""Weights of a network as a safetensors file that also says what they are."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.base.errors import UserError
from pipeline.base.files import atomic, user_error_if_unwritable


def save_weights(path: Path, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write a state dict as safetensors with `about` (JSON) in its metadata, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary, user_error_if_unwritable(path, SafetensorError):
        save_file(tensors, temporary, metadata={"pipeline": json.dumps(about, sort_keys=True)})


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of weights written by `save_weights`.

    Raises UserError where the file is missing, damaged or of another program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["pipeline"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"weights {path} are missing: run `make train`") from error
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"weights {path} are damaged or not of this pipeline ({error})") from error

"""Weights of a network as a safetensors file that also says how they were trained.

What the file says can be read without loading torch.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safetensors import SafetensorError, safe_open

from pipeline.base.errors import UserError
from pipeline.base.files import atomic, atomic_stream, user_error_if_unwritable
from pipeline.base.json_objects import JsonObject, mapping_at

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # Type and shape of each tensor by its name, in the order of the file
    Layout = dict[str, tuple[torch.dtype, torch.Size]]

METADATA_KEY = "pipeline"  # of the JSON in the metadata of the file
# Names of types in the file
DTYPES = {
    "torch.float16": "F16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int64": "I64",
}
NAMED = 3  # tensors that a message names
# Other files by their first two bytes: pickles begin with their protocol
PICKLED = {bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)}
PICKLED[b"PK"] = "a checkpoint of torch.save"


class WeightsAbout(JsonObject):
    """How weights were trained. None: not known, because another program trained them."""

    # For messages
    KIND: ClassVar[str] = "a file of weights of this pipeline"
    REMEDY: ClassVar[str] = "train again, or import the weights again"

    # How they were trained
    config: dict[str, object]  # keys that the training read; `imported`: where weights came from
    record: dict[str, object]  # what the workload says of its data
    # None if unknown
    images: int | None = None  # seen in training
    gpu_hours: float | None = None
    torch: str | None = None  # version
    ema_halflife_images: int | None = None  # 0: not averaged
    ema_width: float | None = None  # of an average of power profile
    snapshots: str | None = None  # folder of the averages stored in training, seen from this file
    # What train.start named: file, sha256 and weights (which they were)
    start: dict[str, str] | None = None  # None: drawn by the seed, or not known

    def section(self, name: str) -> Mapping[str, Any]:
        """The keys of one section that the training read; empty if it read none."""
        return mapping_at(self.config, name)


def save_weights(path: Path, state: Mapping[str, "Tensor"], about: WeightsAbout) -> None:
    """Write a state dict and what is known of it as safetensors, atomically.

    Raises UserError if the disk is full.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    metadata = {METADATA_KEY: json.dumps(about.to_json(), sort_keys=True)}
    with atomic(path) as temporary, user_error_if_unwritable(path, SafetensorError):
        save_file(tensors, temporary, metadata=metadata)


def stream_weights(
    path: Path, tensors: Iterable["Tensor"], layout: "Layout", about: WeightsAbout
) -> None:
    """Write `tensors`, one after the other in the order of `layout`, as `save_weights` would.

    No more than one of them needs to be in memory. Raises UserError if the disk is full.
    """
    # Where each of them lies
    header: dict[str, Any] = {
        "__metadata__": {METADATA_KEY: json.dumps(about.to_json(), sort_keys=True)}
    }
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": DTYPES[str(dtype)],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    # One by one
    with atomic_stream(path) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor, (dtype, shape) in zip(tensors, layout.values(), strict=True):
            value = tensor.detach().to(dtype).cpu().contiguous()
            assert value.shape == shape
            stream.write(value.numpy().tobytes())


def load_weights(path: Path) -> dict[str, "Tensor"]:
    """The state dict in a file of weights, on the CPU.

    Raises UserError if the file is missing, damaged or of another program.
    """
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_about(path: Path) -> WeightsAbout:
    """The record in a file of weights; the weights are not read.

    Raises UserError if the file is missing, cut short or of another program.
    """
    with _opened(path, "np") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    return WeightsAbout.parse(about, f"weights {path}")


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[safe_open]:
    # Checked on opening
    try:
        with safe_open(path, framework=framework) as file:
            if METADATA_KEY not in (file.metadata() or {}):
                raise UserError(f"weights {path} {foreign(list(file.keys()))}")
            yield file
    # Told in one sentence
    except FileNotFoundError as error:
        raise UserError(f"weights {path} are missing: run `make train`") from error
    except OSError as error:  # safetensors tries to map a folder, too
        reason = "are a folder" if path.is_dir() else f"cannot be read ({error})"
        raise UserError(f"weights {path} {reason}: give a weights.safetensors") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"weights {path} {unreadable(path, error)}") from error


def foreign(names: list[str]) -> str:
    """What a safetensors file of another program holds, and what is wanted."""
    first = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return (
        f"are of another program: they hold {len(names)} tensors ({first}) and not how they were "
        "trained; give the weights.safetensors of a training, or import its checkpoint with "
        "`python -m pipeline.import_weights`"
    )


def unreadable(path: Path, error: Exception) -> str:
    """Why a file is not safetensors, and what is wanted."""
    with path.open("rb") as stream:
        kind = PICKLED.get(stream.read(2))
    if kind is None:
        return f"are damaged or not safetensors ({error}): copy them again, or run `make train`"
    return (
        f"are {kind}, not safetensors: give the weights.safetensors of a training, or import the "
        "checkpoint with `python -m pipeline.import_weights`"
    )

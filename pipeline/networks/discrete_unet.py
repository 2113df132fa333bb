"""The network of discrete flows: ADM's UNet between tokens and logits, without a time.

Tokens are 0 … values-1 and the mask, `values`. How many of them are masks tells the time, so the
network does not see it. A table turns the token of each of an image's three colours into numbers,
`token_channels` of them; side by side they take the place of the first convolution.
"""

import torch
from torch import Tensor, nn

from pipeline.compute import execution
from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.networks.unet import Body

COLOURS = 3


class DiscreteUNet(Body):
    """Logits of every token at every place: (B,3,H,W) int64 -> (B,3,H,W,values + 1)."""

    def __init__(self, model: DiscreteUNetKeys, num_classes: int) -> None:
        super().__init__(model, num_classes)
        self.vocabulary = model.vocabulary
        self.token_embedding = nn.Embedding(model.vocabulary, model.token_channels)
        self._build_label_embedding()
        self._build_body(COLOURS * model.token_channels, COLOURS * model.vocabulary)

    def forward(
        self, x: Tensor, t: Tensor | None, labels: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Logits (B,3,H,W,V) of tokens x (B,3,H,W); labels (B,) int64. The times t do not matter.

        `keys` (B,2) int32: the images' random words for dropout in training.
        """
        # Numbers of each colour side by side
        b, _, height, width = x.shape
        numbers = self.token_embedding(x.permute(0, 2, 3, 1))  # (B,H,W,3,token_channels)
        h = numbers.flatten(3).permute(0, 3, 1, 2)
        h = h.contiguous(memory_format=execution.memory_format(h.device))

        # Classes
        if self.label_embedding is None:
            embedding = torch.zeros(b, self.width, dtype=h.dtype, device=h.device)
        else:
            embedding = self.label_embedding(labels)

        # Logits of each colour
        outputs = self.through(h, embedding, keys)
        return outputs.view(b, COLOURS, self.vocabulary, height, width).permute(0, 1, 3, 4, 2)

"""DINOv2's vision transformer (Oquab et al. 2023), into which its published weights are loaded.

torch-fidelity has torch.hub download and run the authors' code for it. This is the same function of
an image: pre-norm blocks with layer scale, the class token after the last norm. Names and shapes of
the tensors are those of the published files.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Shape of the input
PATCH = 14  # px
IMAGE = 224  # px along each axis of the images whose features are compared
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours, in [0,1]
# Shape of the network
TRAINED = 37  # patches along each axis of the images that it was trained on
EPSILON = 1e-6  # of the layer norms
SHAPES = {384: (12, 6), 768: (12, 12), 1024: (24, 16)}  # width -> blocks, heads


class Scale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention of tokens (B,T,C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))  # (B,heads,T,C/heads)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each normed before, scaled after, and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = Mlp(width)
        self.ls2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Patches(nn.Module):
    """Each patch of an image (B,3,H,W) as a token (B,T,C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class DinoV2(nn.Module):
    """The network of one width: 384, 768 or 1024."""

    def __init__(self, width: int) -> None:
        super().__init__()
        blocks, heads = SHAPES[width]
        # Tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # in the files; not used here
        # Layers
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, EPSILON)

    def positions(self, side: int) -> Tensor:
        """Position of each token (1,1+side²,C), resized from the trained ones as the authors do.

        They scale by (side + 0.1) / 37, which is not quite the ratio of the sizes.
        """
        first, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if side == TRAINED:
            return self.pos_embed
        square = patches.unflatten(1, (TRAINED, TRAINED)).permute(0, 3, 1, 2)
        scale = (side + 0.1) / TRAINED
        resized = nn.functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class token (B,C) of normalised square images (B,3,H,H), H a multiple of 14 px."""
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + self.positions(x.shape[-1] // PATCH)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)[:, 0]
        return out


class DinoV2Features(nn.Module):
    """DINOv2 on images of any size, with the colours of torch-fidelity, which are EDM2's, too.

    `resize(images, size=(H,W), align_corners=False)` resizes float images (B,3,h,w).
    """

    def __init__(self, model: DinoV2, resize: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.resize = model, resize
        self.mean, self.std = (
            nn.Buffer(torch.tensor([255 * colour for colour in colours]).view(3, 1, 1))
            for colours in (MEAN, STD)
        )

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Class token (B,C) of uint8 (B,3,H,W)."""
        resized = self.resize(images.float(), size=(IMAGE, IMAGE), align_corners=False)
        return (self.model((resized - self.mean) / self.std),)

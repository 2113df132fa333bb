"""The keys of the network, section `model`: one class per family of networks, by `model.kind`.

A further family is a class with its own `kind` and `check`, and a member of the union `Model`.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag, TypeAdapter, field_validator

from pipeline.base.errors import UserError
from pipeline.config.types import Positive, PositiveInt, Section

SIGMA_DATA = 0.5  # standard deviation of the images' values in [-1,1] (Karras et al. 2022)
LEVELS = 256  # of a colour in a pack


class UNetBlocks(Section):
    """The blocks of ADM's UNet (Dhariwal & Nichol 2021), whatever its first layer and outputs."""

    # Width and depth
    channels: Annotated[int, Field(ge=32, multiple_of=32)]  # width at full resolution
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # one per resolution
    blocks: PositiveInt  # residual blocks per resolution
    # Attention
    attention_at: tuple[PositiveInt, ...]  # downsampling factors that have attention
    head_channels: PositiveInt | None  # channels per attention head; None: use `heads`
    heads: PositiveInt
    # Regularisation
    dropout: Annotated[float, Field(ge=0, lt=1)]
    # Details of the blocks
    scale_shift_norm: bool
    residual_updown: bool
    conv_resample: bool
    class_conditional: bool

    def check(self, resolution: int) -> None:
        """Raise UserError if the network cannot be built, or not for images of `resolution` px."""
        # Heads of each level
        divisor, name = self.heads, "model.heads"
        if self.head_channels is not None:
            divisor, name = self.head_channels, "model.head_channels"
        check_heads(self, name, divisor)
        check_halvings(self.channel_mult, resolution)


class UNetKeys(UNetBlocks):
    """The UNet of ADM (Dhariwal & Nichol 2021)."""

    sigma_data: ClassVar[float] = SIGMA_DATA
    kind: Literal["unet"] = "unet"
    time_scale: Positive  # the time in [0,1] enters the embedding times this


class DiscreteUNetKeys(UNetBlocks):
    """ADM's UNet on tokens, without a time: from values and masks to logits of values."""

    kind: Literal["discrete_unet"]
    values: Annotated[int, Field(ge=2, le=LEVELS)] = LEVELS  # grey levels that tokens tell apart

    @field_validator("values")
    @classmethod
    def _levels_are_shared_out(cls, value: int) -> int:
        if LEVELS % value:
            raise ValueError(f"expected a divisor of {LEVELS}")
        return value

    @property
    def mask(self) -> int:
        """The token that hides a value: the one after the values."""
        return self.values

    @property
    def token_channels(self) -> int:
        """Numbers of a token: a third of `channels`, rounded up to the norms' 32 groups."""
        return 32 * math.ceil(self.channels / 96)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the values and the mask."""
        return self.values + 1


class EDM2Keys(Section):
    """The magnitude-preserving network of EDM2 (Karras et al. 2024)."""

    # Width and depth
    kind: Literal["edm2"]
    channels: PositiveInt  # width at full resolution
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # one per resolution
    blocks: PositiveInt  # per resolution of the encoder
    # Attention
    attention_at: tuple[PositiveInt, ...]  # downsampling factors that have attention
    head_channels: PositiveInt  # channels per attention head
    # Regularisation and classes
    dropout: Annotated[float, Field(ge=0, lt=1)]
    class_conditional: bool
    # Noise
    sigma_data: Positive = SIGMA_DATA  # standard deviation of the images' values in [-1,1]
    uncertainty_channels: PositiveInt = 128  # noise features that the uncertainty is made of

    def check(self, resolution: int) -> None:
        """Raise UserError if the network cannot be built, or not for images of `resolution` px."""
        check_heads(self, "model.head_channels", self.head_channels)
        check_halvings(self.channel_mult, resolution)


class DecoderKeys(Section):
    """A decoder on sentence vectors (LCM team 2024)."""

    class_conditional: ClassVar[bool] = False
    # Width and depth
    kind: str
    channels: PositiveInt  # width of the stream
    layers: PositiveInt
    heads: PositiveInt
    inner_channels: PositiveInt  # of the MLPs, as they are
    # Kinds of layers
    positions: Literal["rope", "learned"]
    norm: Literal["rms", "layer"]
    mlp: Literal["swiglu", "relu"]
    output_bias: bool  # of the attention's last map
    # Regularisation
    dropout: Annotated[float, Field(ge=0, lt=1)]  # after attention and MLP
    final_dropout: Annotated[float, Field(ge=0, lt=1)]  # after the last norm

    def check(self, resolution: int) -> None:
        """Raise UserError if the network cannot be built; images are nothing to it."""
        planes = 2 if self.positions == "rope" else 1  # rotations take channels in pairs
        if self.channels % (self.heads * planes):
            pairs = " pairs of" if planes == 2 else ""
            raise UserError(
                f"model.heads={self.heads} does not divide the {self.channels // planes}{pairs} "
                "channels of model.channels: use a divisor"
            )


class LCMKeys(DecoderKeys):
    """The Large Concept Model that regresses the next sentence (Base-LCM)."""

    kind: Literal["lcm"]


class TwoTowerKeys(DecoderKeys):
    """The one that denoises it; `layers` and `final_dropout` are of the tower that reads."""

    kind: Literal["lcm_two_tower"]
    denoiser_layers: PositiveInt
    noise_levels: Annotated[int, Field(ge=2)]
    context_dropout: Annotated[float, Field(ge=0, lt=1)]  # share of targets without a context


def check_halvings(channel_mult: tuple[int, ...], resolution: int) -> None:
    """Raise UserError unless images of `resolution` px can be halved down to the last level."""
    halvings = len(channel_mult) - 1
    if resolution % 2**halvings:
        raise UserError(
            f"data.resolution={resolution} cannot be halved {halvings} times, as "
            f"model.channel_mult with {halvings + 1} entries needs: use a multiple of "
            f"{2**halvings} or a shorter model.channel_mult"
        )


def check_heads(keys: UNetBlocks | EDM2Keys, name: str, divisor: int) -> None:
    """Raise UserError unless `divisor`, the value of the key `name`, divides the width of every
    level with attention.
    """
    levels = [n for n in range(len(keys.channel_mult)) if 2**n in keys.attention_at]
    for level in {*levels, len(keys.channel_mult) - 1}:  # the middle always has attention
        width = keys.channels * keys.channel_mult[level]
        if width % divisor:
            raise UserError(
                f"{name}={divisor} does not divide the {width} channels at downsampling factor "
                f"{2**level}: use a divisor, or leave the factor out of model.attention_at"
            )


def kind_of(section: Any) -> str:
    """The family of a model section; `unet` if it does not say, as in files of earlier versions."""
    if isinstance(section, Mapping):
        return str(section.get("kind", "unet"))
    return str(getattr(section, "kind", "unet"))


Model = Annotated[
    Annotated[UNetKeys, Tag("unet")]
    | Annotated[EDM2Keys, Tag("edm2")]
    | Annotated[DiscreteUNetKeys, Tag("discrete_unet")]
    | Annotated[LCMKeys, Tag("lcm")]
    | Annotated[TwoTowerKeys, Tag("lcm_two_tower")],
    Discriminator(kind_of),
]


def family_keys(kind: str) -> tuple[str, ...]:
    """The keys of a family of networks, without `model.`; empty if there is no such family."""
    for member in get_args(get_args(Model)[0]):
        section, tag = get_args(member)
        if tag.tag == kind:
            return tuple(section.model_fields)
    return ()


def without_other_families(section: Mapping[str, object], kind: str) -> dict[str, object]:
    """A model section without its kind and the keys that only other families than `kind` have."""
    members = [get_args(member)[0] for member in get_args(get_args(Model)[0])]
    others = {key for member in members for key in member.model_fields} - {*family_keys(kind)}
    return {key: value for key, value in section.items() if key not in others | {"kind"}}


def read_model(section: Mapping[str, object]) -> Model:
    """The keys in a model section of a file; raises pydantic's ValidationError."""
    model: Model = TypeAdapter(Model).validate_python(section)
    return model

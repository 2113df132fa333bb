"""The keys of the network, section `model`: one class per family of networks, by `model.kind`.

A further family is a class with its own `kind` and `check`, and a member of the union `Model`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from pipeline.base.errors import UserError
from pipeline.config.types import Positive, PositiveInt, Section


class UNetKeys(Section):
    """The UNet of ADM (Dhariwal & Nichol 2021)."""

    # Width and depth
    kind: Literal["unet"] = "unet"
    channels: Annotated[int, Field(ge=32, multiple_of=32)]  # width at full resolution
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # one per resolution
    blocks: PositiveInt  # residual blocks per resolution
    # Attention
    attention_at: tuple[PositiveInt, ...]  # downsampling factors that have attention
    head_channels: PositiveInt | None  # channels per attention head; None: use `heads`
    heads: PositiveInt
    # Regularisation and time
    dropout: Annotated[float, Field(ge=0, lt=1)]
    time_scale: Positive  # the time in [0,1] enters the embedding times this
    # Details of the blocks
    scale_shift_norm: bool
    residual_updown: bool
    conv_resample: bool
    class_conditional: bool

    def check(self, resolution: int) -> None:
        """Raise UserError if the network cannot be built, or not for images of `resolution` px."""
        # Size must halve
        self._check_heads()
        halvings = len(self.channel_mult) - 1
        if resolution % 2**halvings:
            raise UserError(
                f"data.resolution={resolution} cannot be halved {halvings} times, as "
                f"model.channel_mult with {halvings + 1} entries needs: use a multiple of "
                f"{2**halvings} or a shorter model.channel_mult"
            )

    def _check_heads(self) -> None:
        """Raise UserError unless the heads divide the width of every level with attention."""
        # Levels with attention
        levels = [n for n in range(len(self.channel_mult)) if 2**n in self.attention_at]
        for level in {*levels, len(self.channel_mult) - 1}:  # the middle always has attention
            width = self.channels * self.channel_mult[level]
            divisor, name = self.heads, "model.heads"
            if self.head_channels is not None:
                divisor, name = self.head_channels, "model.head_channels"
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


# Each further member: `| Annotated[OtherKeys, Tag("other")]`.
Model = Annotated[Annotated[UNetKeys, Tag("unet")], Discriminator(kind_of)]


def read_model(section: Mapping[str, Any]) -> Model:
    """The keys in a model section of a file; raises pydantic's ValidationError."""
    model: Model = TypeAdapter(Model).validate_python(section)
    return model

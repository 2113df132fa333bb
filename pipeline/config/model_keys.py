"""The keys of the network: `model`."""

from typing import Annotated

from pydantic import Field

from pipeline.config.types import Positive, PositiveInt, Section


class Model(Section):
    channels: Annotated[int, Field(ge=32, multiple_of=32)]  # width at full resolution
    channel_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # one per resolution
    blocks: PositiveInt  # residual blocks per resolution
    attention_at: tuple[PositiveInt, ...]  # downsampling factors that have attention
    head_channels: PositiveInt | None  # channels per attention head; None: use `heads`
    heads: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    time_scale: Positive  # the time in [0,1] enters the embedding times this
    scale_shift_norm: bool
    residual_updown: bool
    conv_resample: bool
    class_conditional: bool

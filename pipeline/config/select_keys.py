"""Keys of `select`: what is chosen after the training, by which trials."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.types import Fraction, PositiveInt, Section, Seed, Width

LEAST_TRIES = 3  # of golden-section search on an axis
Weight = Annotated[float, Field(ge=0)]
Interval = tuple[Fraction, Fraction]


class Select(Section):
    # Cost of a trial
    num: Annotated[int, Field(ge=2)] = 5000  # samples with each seed
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1000000,)
    # What is searched, and how
    search: Literal["grid", "golden"] = "golden"
    ema_widths: tuple[Width, ...] | None = None  # grid: each of them; golden: two ends; None: none
    guidance: tuple[Weight, ...] | None = None  # likewise
    intervals: tuple[Interval, ...] | None = None  # of guidance, each of them
    max_tries: PositiveInt = 24

    @field_validator("seeds", "ema_widths", "guidance", "intervals")
    @classmethod
    def _nothing_twice(cls, value: Any) -> Any:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("expected a list of one value or more, none of them twice")
        return value

    @field_validator("intervals")
    @classmethod
    def _intervals_are_in_order(cls, value: tuple[Interval, ...] | None) -> Any:
        if any(low >= high for low, high in value or ()):
            raise ValueError("expected pairs of two times, the smaller one first")
        return value

    @model_validator(mode="after")
    def _tries_are_enough(self) -> "Select":
        # Something to choose
        axes = [self.ema_widths, self.guidance]
        given = [axis for axis in axes if axis is not None]
        if not given and self.intervals is None:
            raise ValueError("give ema_widths, guidance or intervals: else there is no choice")

        # Two ends
        if self.search == "golden" and any(len(a) != 2 or a[0] >= a[1] for a in given):
            raise ValueError(
                "search=golden needs two ends, the smaller one first, in each of ema_widths and "
                "guidance: give those, or search=grid"
            )

        # Not too many
        if self.num_tries > self.max_tries:
            raise ValueError(
                f"{self.num_tries} tries or more are needed, and max_tries is {self.max_tries}: "
                "give fewer values, or more tries"
            )
        return self

    @property
    def num_tries(self) -> int:
        """The tries of a grid, or the least that golden-section search needs."""
        widths, weights, intervals = (
            1 if axis is None else len(axis)
            for axis in (self.ema_widths, self.guidance, self.intervals)
        )
        if self.search == "grid":
            return widths * weights * intervals
        return LEAST_TRIES * self.num_axes + (intervals if self.intervals else 0)

    @property
    def num_axes(self) -> int:
        """The axes that golden-section search goes along, one after the other."""
        return sum(axis is not None for axis in (self.ema_widths, self.guidance))

    @property
    def most_tries(self) -> int:
        """The tries that the search makes at most."""
        if self.search == "grid":
            return self.num_tries
        intervals, axes = len(self.intervals or ()), self.num_axes
        return (self.max_tries - intervals) // axes * axes + intervals if axes else intervals

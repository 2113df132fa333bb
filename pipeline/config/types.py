"""Types that the keys share: numbers in a range, and the base of every section."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# Numbers in a range
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[int, Field(ge=0)]
NotNegativeNumber = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
WIDEST = 0.28  # of averages; one of all steps alike has 12^-0.5 = 0.289
Width = Annotated[float, Field(gt=0, le=WIDEST)]  # of an average, as a share of the images seen
# Names of formats
Precision = Literal["bf16", "fp16", "fp32", "tf32"]


class Section(BaseModel):
    """Base of all sections: closed (no unknown keys), immutable, no infinities or NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """true and false are not numbers here, though Python counts them as 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError("expected no true or false")
        return value

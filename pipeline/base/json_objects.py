"""JSON objects with typed keys: one class says what a file holds, reads it and writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.errors import UserError
from pipeline.base.files import read_json, write_json


def mapping_at(tree: Mapping[str, object] | None, name: str) -> Mapping[str, Any]:
    """The mapping at `name` of a larger one; empty if none stands there, or `tree` is None."""
    value = (tree or {}).get(name)
    return value if isinstance(value, Mapping) else {}


class JsonObject(BaseModel):
    """An immutable JSON object. Unknown keys are ignored; keys that were never set are not written.

    So an object that was read from a file and is written again has the file's known keys.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    KIND: ClassVar[str]  # for messages: "a pack's record"
    REMEDY: ClassVar[str]  # for messages: how to get one

    @classmethod
    def parse(cls, value: Any, where: Path | str) -> Self:
        """The object that `value`, decoded JSON, describes.

        Raises UserError if keys are missing or of another type; `where` names the file.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the whole"
            reason = first["msg"][:1].lower() + first["msg"][1:]
            raise UserError(f"{where} is not {cls.KIND} ({key}: {reason}): {cls.REMEDY}") from error

    @classmethod
    def parse_if_any(cls, value: Any) -> Self | None:
        """The object that `value` describes; None if it does not describe one."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The object in a file; raises UserError if it is missing, damaged or of another kind."""
        return cls.parse(read_json(path), path)

    @classmethod
    def of(cls, source: "JsonObject") -> Self:
        """The part of `source` that this class knows."""
        return cls.model_validate(source.to_json())

    def to_json(self) -> dict[str, object]:
        """The keys that were set, as `parse` takes them."""
        return self.model_dump(exclude_unset=True)

    def write(self, path: Path) -> None:
        """Write the object as JSON, atomically: equal objects give equal bytes."""
        write_json(path, self.to_json())

"""Messages about a configuration: one sentence that names the key and the remedy."""

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.model_keys import family_keys
from pipeline.config.schema import Config, Guide

# --- keys ----------------------------------------------------------------------------------------


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys, sections included; of a union of sections, the keys of all members."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for section in sections(field.annotation):
            keys += known_keys(section, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type allows: one, the members of a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [section for member in get_args(annotation) for section in sections(member)]
    return []


def nearest(word: str, names: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to `word`, else an empty string."""
    names = list(names)
    tails = {k.rpartition(".")[2]: k for k in reversed(names)}  # the first of equal tails wins
    close = difflib.get_close_matches(word, names, 1, 0.6)
    close = close or difflib.get_close_matches(word.rpartition(".")[2], tails, 1, 0.6)
    return f"; did you mean {tails.get(close[0], close[0])}?" if close else ""


# --- problems ------------------------------------------------------------------------------------


def explain(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """One sentence for the first problem with a `model`, unknown keys before bad values."""
    # The first problem
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first, keys = problems[0], known_keys(model)
    # No such network
    if first["type"] == "union_tag_invalid":
        choices = first["ctx"]["expected_tags"].replace("'", "")
        return f"model.kind={first['ctx']['tag']!r} is not valid: use one of {choices}"
    location = without_family([str(part) for part in first["loc"]])
    # Unions add the name of their member to the location; keep what is a key.
    parts = list(location)
    while first["type"] != "extra_forbidden" and parts and ".".join(parts) not in keys:
        parts.pop()
    key = ".".join(parts)

    # Keys that are unknown
    if first["type"] == "extra_forbidden":
        all_keys = f" (known: {', '.join(keys)})" if model is not Config else ""
        family = family_of(first)
        others = f" of model.kind={family}" if key in keys else ""  # another family has it
        return f"unknown key {key}{others}{nearest(key, without_others(keys, family)) or all_keys}"

    # Keys that are missing
    if first["type"] == "missing" and parts == location:
        return f"key {key} is missing in config.yaml"
    if first["type"] == "missing":
        return f"{key}={list(first['input'])} is not valid: expected more values"

    # Values out of range
    return f"{key}={first['input']!r} is not valid: {expectation(first, key, model)}"


def family_of(problem: Any) -> str | None:
    """The family of networks whose keys a problem is about; None: another section's."""
    location = problem["loc"]
    return str(location[1]) if location[0] == "model" and len(location) > 1 else None


def without_others(keys: list[str], family: str | None) -> list[str]:
    """`keys` without those of `model` that only other families have; None: all of them."""
    names = {f"model.{name}" for name in family_keys(family or "")}
    return [k for k in keys if not names or not k.startswith("model.") or k in names]


def without_family(location: list[str]) -> list[str]:
    """A problem's location without what unions add: model.unet.heads, sample.guide.Guide.images."""
    location = [part for part in location if part != Guide.__name__]
    return [location[0], *location[2:]] if location[:1] == ["model"] else location


def expectation(problem: Any, key: str, model: type[BaseModel]) -> str:
    """The values that are possible instead."""
    # A section, or 1e6
    if problem["type"] == "model_type" and key in (keys := known_keys(model)):
        below = next((name for name in keys if name.startswith(f"{key}.")), key)
        return f"expected keys of this section, such as {below}"
    if problem["type"] == "int_parsing" and (whole := whole_number(problem["input"])) is not None:
        return f"write {whole:_}"

    # Listed values, types, ranges
    text = "" if problem["type"] == "value_error" else allowed(key, model, family_of(problem))
    text = text or str(problem["msg"]).replace("Input should be", "expected")
    text = text.replace("a valid tuple", "a list").replace("Tuple", "the list")
    return text.removeprefix("Value error, ")


def whole_number(text: str) -> int | None:
    """The whole number that `text` is in another form, such as 1e6; None: it is not one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def allowed(key: str, model: type[BaseModel] = Config, family: str | None = None) -> str:
    """`use one of …` for a key with listed values or several types, else an empty string.

    `family`: of the networks, if the key is one of `model`; None: the first one that has it.
    """
    # Down to the key
    kind: Any = model
    for part in key.split("."):
        holders = [section for section in sections(kind) if part in section.model_fields]
        holders.sort(key=lambda section: not is_family(section, family))
        kind = holders[0].model_fields[part].annotation

    # In the user's words
    if get_origin(kind) is Literal:
        return "use one of " + ", ".join(map(str, get_args(kind)))
    if sections(kind):
        return ""
    if get_origin(kind) in (Union, types.UnionType):
        return "use " + " or ".join(map(type_word, get_args(kind)))
    return ""


def is_family(section: type[BaseModel], family: str | None) -> bool:
    """Whether a section holds the keys of this family of networks."""
    kind = section.model_fields.get("kind")
    return kind is not None and family in get_args(kind.annotation)


def type_word(kind: Any) -> str:
    """A type as a user would say it."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list"
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    names = {int: "a whole number", float: "a number", bool: "true|false", str: "text"}
    return names.get(plain, "null")

"""What is wrong with a configuration, in one sentence that names the key."""

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.schema import Config


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to `word`, else an empty string."""
    known = list(known)
    tails = {k.rpartition(".")[2]: k for k in reversed(known)}  # the first of equal tails wins
    close = difflib.get_close_matches(word, known, 1, 0.6)
    close = close or difflib.get_close_matches(word.rpartition(".")[2], tails, 1, 0.6)
    return f"; did you mean {tails.get(close[0], close[0])}?" if close else ""


def explain(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """One sentence for the first problem with a `model`, unknown keys before bad values."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    known = known_keys(model)
    # Unions add the name of their member to the location; keep what is a key.
    parts = [str(p) for p in first["loc"]]
    while first["type"] != "extra_forbidden" and parts and ".".join(parts) not in known:
        parts.pop()
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        few = f" (known: {', '.join(known)})" if model is not Config else ""
        return f"unknown key {key}{nearest(key, known) or few}"
    if first["type"] == "missing" and len(parts) == len(first["loc"]):
        return f"key {key} is missing in config.yaml"
    if first["type"] == "missing":
        return f"{key}={list(first['input'])} is not valid: expected more values"
    expected = "" if first["type"] == "value_error" else allowed(key, model)
    expected = expected or str(first["msg"]).replace("Input should be", "expected")
    expected = expected.replace("a valid tuple", "a list").replace("Tuple", "the list")
    expected = expected.removeprefix("Value error, ")
    return f"{key}={first['input']!r} is not valid: {expected}"


def allowed(key: str, model: type[BaseModel] = Config) -> str:
    """`use one of …` for a key with listed values or several types, else an empty string."""
    kind: Any = model
    for part in key.split("."):
        kind = kind.model_fields[part].annotation
    if get_origin(kind) is Literal:
        return "use one of " + ", ".join(map(str, get_args(kind)))
    if isinstance(kind, types.UnionType) or "Union" in str(get_origin(kind)):
        return "use " + " or ".join(map(type_word, get_args(kind)))
    return ""


def type_word(kind: Any) -> str:
    """A type as a user would say it."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list"
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    names = {int: "a whole number", float: "a number", bool: "true|false", str: "text"}
    return names.get(plain, "null")

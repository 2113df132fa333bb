"""Values as YAML, read in the same way whatever the door: a file, --config, SET, a step's words.

Types are those of YAML, except that keys of mappings and the values of keys that hold text are text
as it is typed: an experiment may be called 2024_01, 1e3 or no. Numbers that YAML 1.1 reads in base
8 (010 is 8) or 60 (1:30:00 is 5400) are refused.
"""

import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pipeline.base.errors import UserError
from pipeline.config.messages import sections
from pipeline.config.schema import Config

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, if there: ten times as fast
TEXT, NULL, MERGE, INT, FLOAT = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "merge", "int", "float")
)
OTHER_BASE = re.compile(r"[-+]?0[0-7_]+$|.*:")  # base 8 or 60, if it is a number


def read_values(text: str, key: str = "") -> Any:
    """The value that `text` gives to a dotted key, or the whole configuration that it holds.

    Raises yaml.YAMLError if it is not YAML, UserError if a number is in base 8 or 60, or a comment
    follows the value of a key.
    """
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if key and text[node.end_mark.index if node else 0 :].lstrip().startswith("#"):
            raise UserError(
                f"{key}={text} would end at its #, where YAML begins a comment: put quotes around "
                f"the value, '{key}=\"…\"', or leave the comment out"
            )
        if node is None:
            return None
        mark_text(node, tuple(key.split(".")) if key else ())
        return loader.construct_document(node)
    except ValueError as error:  # what looks like a date, such as 2024-02-30
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def mark_text(node: yaml.Node, path: tuple[str, ...]) -> None:
    """Give everything at or below `path` that is text as it is typed the tag of text.

    Raises UserError if a number there is in base 8 or 60.
    """
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag != MERGE and isinstance(name, yaml.ScalarNode):
                name.tag = TEXT
            mark_text(value, (*path, str(name.value)) if name.tag != MERGE else path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            mark_text(value, path)
    elif node.value and holds_text(path, node.tag == NULL):
        node.tag = TEXT
    elif node.tag in (INT, FLOAT) and OTHER_BASE.match(node.value):
        key = ".".join(path[2:] if path[:1] == ("experiments",) else path)
        raise UserError(
            f"{key}={node.value} is not valid: YAML takes a number with a leading 0 for "
            "one in base 8, and one with colons for one in base 60; write it without them, or a "
            "name in quotes"
        )


def holds_text(path: tuple[str, ...], is_null: bool) -> bool:
    """Whether a scalar at `path` is text as it is typed; `is_null`: it is typed as a null.

    Words of steps, which are not keys of the schema, are text too.
    """
    # Keys within an experiment, a stage's JSON or a run are those of the whole
    if path[:1] == ("experiments",):
        path = path[2:]
    if path[:1] == ("config",) and len(path) > 1:
        path = path[1:]
    if path[:2] == ("sample", "runs"):
        path = ("sample", *path[2:])

    # Which of them hold text
    if len(path) == 1 and path[0] not in Config.model_fields:
        return not is_null
    nullable = text_keys().get(".".join(path))
    return nullable is not None and not (nullable and is_null)


@cache
def text_keys() -> dict[str, bool]:
    """Dotted keys that hold text, and whether null is one of their values."""
    return dict(_text_keys(Config, ""))


def _text_keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind is str or (is_union(kind) and str in get_args(kind)):
            yield prefix + name, kind is not str
        for section in sections(kind):
            yield from _text_keys(section, f"{prefix}{name}.")


def is_union(kind: Any) -> bool:
    """Whether a type is a union of several, however that is written."""
    return get_origin(kind) in (Union, types.UnionType)

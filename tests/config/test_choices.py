"""Choices of a key: each is listed once in the schema, and as the rows of one table in the code."""

from typing import Any, get_args

import pytest

from pipeline.config import schema
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.messages import sections
from pipeline.config.model_keys import family_keys
from pipeline.images.recipes import RECIPES
from pipeline.images.sources.packagings import PACKAGINGS
from pipeline.networks.families import FAMILIES
from pipeline.sampling.solvers import ADAPTIVE, FIXED_GRID, MULTISTEP
from pipeline.scoring.kinds import KINDS
from pipeline.train import WORKLOADS


def choices(section: Any, key: str) -> set[str]:
    return set(get_args(section.model_fields[key].annotation))


@pytest.mark.parametrize(
    ("section", "key", "rows"),
    [
        (schema.Config, "workload", {*WORKLOADS}),
        (
            schema.Data,
            "source",
            {"auto", *MADE_SOURCES, *(p.source for p in PACKAGINGS)},
        ),
        (schema.Data, "layout", {"auto", *(p.layout for p in PACKAGINGS)}),
        (schema.Data, "recipe", {*RECIPES}),
        (
            schema.Sample,
            "solver",
            {*FIXED_GRID, *MULTISTEP, *ADAPTIVE, "learned", *get_args(schema.JumpSolver)},
        ),
        (schema.Evaluate, "extractor", {*KINDS}),
    ],
)
def test_choices_are_the_rows_of_a_table(section: Any, key: str, rows: set[str]) -> None:
    assert choices(section, key) == rows


def test_adaptive_solvers_are_those_without_a_grid() -> None:
    assert set(get_args(schema.AdaptiveSolver)) == {*ADAPTIVE}
    assert set(get_args(schema.MultistepSolver)) == {*MULTISTEP}


def test_the_families_of_networks_are_the_sections_of_their_keys() -> None:
    members = sections(schema.Config.model_fields["model"].annotation)
    kinds = [get_args(section.model_fields["kind"].annotation)[0] for section in members]
    assert kinds == [
        *FAMILIES,
        "lcm",
        "lcm_two_tower",
    ]  # these are not of images: concept/families.py
    assert [family_keys(kind) for kind in kinds] == [tuple(s.model_fields) for s in members]

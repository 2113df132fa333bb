"""Names of samplers: one each, and samplers that would share one are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.config import samplers
from pipeline.config.stages import stage_keys
from tests.conftest import resolved


def name(*words: str) -> str:
    plain = "sample.ema_halflife_images=null"
    return samplers.sampler_name(resolved(plain, *(f"sample.{word}" for word in words)).sample)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["solver=heun", "steps=18", "guidance=1"], "heun-18"),
        (["solver=heun", "steps=18", "grid=edm", "guidance=1"], "heun-18-edm"),
        (["solver=dopri5", "grid=edm", "steps=7"], "dopri5-1e-05-g1.2"),
        (["rtol=1e-3", "guidance=1"], "dopri5-0.001-1e-05"),
        (["solver=rk4", "guidance_interval=[0.2,0.8]"], "rk4-32-g1.2-from0.2to0.8"),
        (["solver=euler", "guidance=1", "guidance_interval=[0.2,0.8]"], "euler-32"),
        (["solver=euler", "guidance=1", "classes=histogram"], "euler-32-histogram"),
        (["solver=euler", "guidance=1", "classes=[5, 1]"], "euler-32-classes5_1"),
        (["solver=euler", "guidance=1", "classes=207"], "euler-32-classes207"),
        (["solver=euler", "guidance=1", "ema_halflife_images=0"], "euler-32-ema0"),
    ],
)
def test_names(words: list[str], expected: str) -> None:
    assert name(*words) == expected


def test_names_of_lists_of_times_and_guides_are_whole_folder_names() -> None:
    times = name("solver=euler", "guidance=1", "grid=[0,0.5,1]")
    assert re.fullmatch(r"euler-2-grid[0-9a-f]{6}", times)
    assert times != name("solver=euler", "guidance=1", "grid=[0,0.4,1]")
    guided = name("solver=euler", "guide='other/a b,{c}.safetensors'")
    assert re.fullmatch(r"euler-32-g1.2-by-a_b__c_-[0-9a-f]{6}", guided)
    assert guided != name("solver=euler", "guide='more/a b,{c}.safetensors'")


@given(st.integers(1, 99), st.integers(1, 99))
def test_a_family_is_what_steps_do_not_change(one: int, other: int) -> None:
    words = ("experiment=small", "sample.solver=heun", "sample.grid=edm")
    about = [
        {"sampler": "x", "config": stage_keys(resolved(*words, f"sample.steps={n}"), "sample")}
        for n in (one, other)
    ]
    assert samplers.family(about[0]) == samplers.family(about[1]) == "heun-edm-g2"


def test_samples_of_another_program_are_a_family_of_their_own() -> None:
    assert samplers.family({"sampler": "theirs"}) == "theirs"
    assert samplers.family({"sampler": "theirs", "config": {"sample": {"solver": 3}}}) == "theirs"


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ("[{steps: 9}, {steps: 8}, {steps: 9}]", "sample.runs[0] and sample.runs[2] have one name"),
        (
            "[{steps: 9}, {steps: 9}]",
            "heun-9-edm, and so one folder: they are equal, so leave one out",
        ),
        ("[{seeds: [1]}, {seeds: [2]}]", "put all seeds into one of them"),
        ("[{num: 10}, {num: 20}]", "no name shows sample.num, in which they differ"),
        ("[{precision: fp32}, {num: 2}]", "sample.num, sample.precision, in which they differ"),
    ],
)
def test_two_of_one_name_are_refused(runs: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved("experiment=cifar10", "data.resolution=32", f"sample.runs={runs}")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), False),  # as config.yaml has it
        (("sample.precision=bf16",), True),
        (("sample.precision=bf16", "sample.atol=1e-3"), True),
        (("sample.precision=bf16", "sample.atol=1e-4", "sample.rtol=1e-4"), False),
        (("sample.precision=bf16", "sample.solver=heun"), False),
        (("sample.precision=fp32",), False),
    ],
)
def test_a_tolerance_that_bf16_cannot_keep_is_told(words: tuple[str, ...], said: bool) -> None:
    assert ("rounding of bf16" in "".join(samplers.notes(resolved(*words).sample))) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample.solver=heun", "sample.guidance_interval=[0.2,0.7]"), True),
        (("sample.solver=dopri5", "sample.guidance_interval=[0.2,0.7]"), False),
        (("sample.solver=heun", "sample.guidance_interval=[0.2,0.7]", "sample.guidance=1"), False),
        (("sample.solver=heun",), False),
    ],
)
def test_a_fixed_grid_across_the_edges_of_guidance_is_told(
    words: tuple[str, ...], said: bool
) -> None:
    notes = "".join(samplers.notes(resolved(*words).sample))
    assert ("in sample.guidance_interval=[0.2,0.7]" in notes) == said


def test_chosen_classes_have_names_and_keys_of_their_own() -> None:
    words = ("solver=euler", "guidance=1")
    names = [
        name(*words, f"classes={classes}")
        for classes in ("[1]", "['1']", "[5, 1]", "[1, 5]", "[tench]", [*range(30)], [*range(31)])
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"euler-32-classes[0-9a-f_-]{1,24}", each) for each in names)
    keys = stage_keys(resolved("sample.classes=[1, tench]"), "sample")
    assert keys["sample"]["classes"] == [1, "tench"]


@pytest.mark.parametrize(
    "value", ["[]", "[1, 1]", "[true]", "[1.5]", "[null]", "many", "[[1]]", "null", "{a: 1}"]
)
def test_other_choices_of_classes_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"sample\.classes=.* is not valid: ") as caught:
        resolved(f"sample.classes={value}")
    assert "\n" not in str(caught.value)


def test_chosen_classes_by_number_and_name() -> None:
    names = ["n01440764", "n01443537", "7"]
    for value, numbers in [
        ("[2, 0]", (2, 0)),
        ("[n01443537, 0]", (1, 0)),
        ("['7']", (2,)),
        ("balanced", None),
    ]:
        sample = resolved(f"sample.classes={value}").sample
        assert samplers.class_numbers(sample, names) == numbers


@pytest.mark.parametrize(
    ("value", "names", "sentence"),
    [
        ("[1, 3]", ["a", "b", "c"], "no class has the number 3; the classes are 0 to 2, a to c"),
        ("[-1]", ["a", "b"], "no class has the number -1"),
        ("[goldfich]", ["tench", "goldfish"], "the name 'goldfich'; .*; did you mean goldfish"),
        (
            "[tench, 0]",
            ["tench", "goldfish"],
            "lists class 0, tench, by its number and by its name",
        ),
        ("[1, 5]", None, r"sample.classes=\[1, 5\] is not possible, since the network knows no"),
    ],
)
def test_chosen_classes_that_are_not_there_are_refused(
    value: str, names: list[str] | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        samplers.class_numbers(resolved(f"sample.classes={value}").sample, names)
    assert "\n" not in str(caught.value)

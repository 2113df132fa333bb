"""The section `select`: what is refused, in a sentence, and what existing runs see of it."""

import pytest

from pipeline.base.errors import UserError
from pipeline.config.load import check_runs
from pipeline.config.paths import weights_file
from pipeline.config.samplers import sampler_name
from pipeline.config.stages import STAGE_KEYS, stage_keys
from pipeline.plan import described
from tests.conftest import resolved

GUIDED = "select.guidance=[1,2]"
WIDTHS = ["train.ema=power", "train.ema_snapshot_images=64", "select.ema_widths=[0.05,0.1]"]
TINY = ["experiment=tiny"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["select.num=9"], "give ema_widths, guidance or intervals"),
        ([GUIDED, "select.num=1"], r"select.num=1 is not valid"),
        (
            [GUIDED, "select.seeds=[3,0]"],
            "select.seeds and sample.seeds both hold 0: .* other seed",
        ),
        ([WIDTHS[2]], "select.ema_widths needs train.ema=power.*or select.ema_widths=null"),
        (["select.guidance=[2,1]"], "two ends, the smaller one first"),
        (["select.guidance=[1,2,3]"], "search=golden needs two ends"),
        ([GUIDED, "select.max_tries=2"], "3 tries or more are needed, and max_tries is 2"),
        (["select.guidance=[1,2,3,4,5]", "select.search=grid", "select.max_tries=4"], "5 tries"),
        (["select.guidance=[1,1]", "select.search=grid"], "none of them twice"),
        (["select.intervals=[[0.5,0.5]]"], "the smaller one first"),
        (["sample.selected=true"], "sample.selected=true needs the section select"),
        (["select.guidances=[1,2]"], "unknown key select.guidances; did you mean select.guidance"),
    ],
)
def test_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        resolved(*TINY, *words)
    assert "\n" not in str(refusal.value)


def test_a_network_that_cannot_guide_itself_is_not_searched() -> None:
    words = [
        "set=['experiment=tiny train.label_dropout=0 sample.guidance=1 select.guidance=[1,2]']"
    ]
    with pytest.raises(UserError, match=r"the section select: sample.guidance=2 is not possible"):
        described([], words)


def test_no_other_stage_sees_it() -> None:
    plain, other = resolved(*TINY), resolved(*TINY, GUIDED, "select.num=7")
    changed = [s for s in STAGE_KEYS if stage_keys(plain, s) != stage_keys(other, s)]
    assert changed == ["select"]


def test_a_selected_sampler_is_named_and_has_the_chosen_weights() -> None:
    words = [*TINY, *WIDTHS, GUIDED]
    config = resolved(*words, "sample.selected=true", "sample.ema_width=0.07")
    assert sampler_name(config.sample) == "euler-4-select"
    assert str(weights_file(config)).endswith("tiny/shapes_tiny_8-box/select/weights.safetensors")
    assert "selected" not in stage_keys(resolved(*words), "sample")["sample"]
    runs = "sample.runs=[{selected: true},{selected: true, guidance: 3}]"
    with pytest.raises(UserError, match="have one name, euler-4-select"):
        check_runs(resolved(*words, runs).sample)

"""Words that are slips of the finger: one sentence each, at every door."""

import re

import pytest

from pipeline.base.errors import UserError
from pipeline.config.load import load_step
from pipeline.launching import commands
from pipeline.launching.handover import hand_over
from tests.conftest import resolved


@pytest.mark.parametrize("word", ["launch=3", "launch=", "launch=standalone"])
def test_a_section_that_is_not_one_is_named(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIPELINE_LAUNCHED", "RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    hand_over("pipeline.train", ["experiment=smoke", word], ())  # no launcher is named
    with pytest.raises(UserError, match=r"^launch=.* is not valid"):
        load_step(["experiment=smoke", word], ())


@pytest.mark.parametrize("word", ["train.lr=2024-02-30", "train={lr: !!int x}"])
def test_what_yaml_cannot_make_a_value_of_is_named(word: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"the value in {word!r} is not YAML")):
        load_step(["experiment=smoke", word], ())


@pytest.mark.parametrize("value", ["runs & #1/x", "ä ö #1", "#1"])
def test_a_value_that_a_comment_would_cut_off_is_named(value: str) -> None:
    for key in ("out", "data.dir"):
        with pytest.raises(UserError, match=re.escape(f"{key}={value} would end at its #")):
            load_step(["experiment=smoke", f"{key}={value}"], ("out",))
    config, words = load_step(["experiment=smoke", f'data.dir="{value}"', "out=run#1"], ("out",))
    assert (config.data.dir, words["out"]) == (value, "run#1")


def test_a_list_is_not_a_launcher() -> None:
    with pytest.raises(UserError, match="launch.launcher=\\['true'\\] is not valid"):
        load_step(["experiment=smoke", "trainer.use_submitit=['true']"], ())


@pytest.mark.parametrize("port", ["0", "65536", "295000", "²"])
def test_a_port_that_cannot_be_is_named(port: str) -> None:
    words = (f"launch.rdzv_endpoint=192.0.2.1:{port}", "launch.launcher=torchrun")
    launch = resolved(*words, "launch.nnodes=2").launch
    with pytest.raises(UserError, match=f"needs launch.rdzv_endpoint=HOST:PORT.*:{port}$"):
        commands.endpoint(launch)
    launch = launch.model_copy(update={"rdzv_endpoint": "192.0.2.1:65535"})
    assert commands.endpoint(launch) == ("192.0.2.1", 65535)

"""Words of steps that name a wrong thing get one sentence, and none of them is dropped."""

from pathlib import Path

import pytest

from pipeline import evaluate, sample, select, train
from pipeline.base.errors import UserError
from tests.random_networks import save_network

TINY = ["experiment=tiny", "runtime.device=cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "weights.safetensors")


def refused(step: object, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        step.main([*TINY, *words])  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("step", "word", "sentence"),
    [
        (sample, "weights", "are a folder: give a weights.safetensors"),
        (select, "weights", "are a folder: give a weights.safetensors"),
        (train, "record", "is a folder: give a file of JSON"),
        (evaluate, "record", "is a folder: give a file of JSON"),
        (sample, "config", "is a folder: give a file of YAML or JSON"),
    ],
)
def test_a_folder_instead_of_a_file(step: object, word: str, sentence: str, tmp_path: Path) -> None:
    others = ["select.guidance=[1,2]", f"out={tmp_path / 'out'}"]
    assert refused(step, *others, f"{word}={tmp_path}").endswith(f"{tmp_path} {sentence}")


def test_a_guide_that_would_not_be_used_is_refused(weights: Path, tmp_path: Path) -> None:
    """guide= is the file of the experiment in sample.guide, and no other way to name a guide."""
    words = [f"weights={weights}", f"out={tmp_path}", "sample.guidance=2"]
    given = f"guide={weights}"
    assert f"sample.guide is null: give sample.guide={weights}" in refused(sample, *words, given)
    other = f"sample.guide={tmp_path / 'other.safetensors'}"
    assert f"but sample.guide is {tmp_path}/other" in refused(sample, *words, given, other)
    sample.prepare([*TINY, *words, given, f"sample.guide={weights}"])
    sample.prepare([*TINY, *words, given, "sample.guide={experiment: tiny}"])


def test_a_choice_that_would_not_be_read_is_refused(weights: Path, tmp_path: Path) -> None:
    words = [f"weights={weights}", f"out={tmp_path}", f"choice={tmp_path}/choice.json"]
    assert "is read with sample.selected=true alone" in refused(sample, *words)


@pytest.mark.parametrize("word", ["samples", "record"])
def test_words_that_images_would_set_aside_are_refused(word: str, tmp_path: Path) -> None:
    words = [f"images={tmp_path}", f"reference={tmp_path}", f"{word}={tmp_path}"]
    extractor = "evaluate.extractor=efficientnet-lite0"
    assert f"images= and {word}= are both given" in refused(evaluate, extractor, *words)

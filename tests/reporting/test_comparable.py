"""No sentence ranks distances of other features, numbers of samples or trainings by each other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import report
from pipeline.reporting.front_pages import scores_in_words, write_cards
from pipeline.reporting.score_rows import best_pairs
from tests.report_inputs import build, evaluation, of_sampler, parsed


def many(value: float, **more: Any) -> dict[str, Any]:
    """A metrics file of 50,000 samples of heun-9."""
    result = of_sampler(0, "heun", 9, value)
    result["metrics"][0] |= {"num_images": 50_000, "label": "FID of many", **more}
    return result


def test_the_lead_is_of_the_most_samples_though_fewer_are_nearer() -> None:
    few = of_sampler(0, "heun", 18, 34.0)
    for values in ([few, many(40.0)], [many(40.0), few]):
        lead = scores_in_words(parsed(*values))[0]
        assert lead.startswith("FID of many: 40 for 50,000 samples")
        assert best_pairs(parsed(*values)) == []
    best = scores_in_words(parsed(few, many(40.0), of_sampler(1, "heun", 9, 20.0)))[0]
    assert "(heun-9, seed 0)" in best


def test_the_lead_is_of_one_extractor() -> None:
    other = of_sampler(0, "heun", 9, 2.0)
    other["metrics"][0] |= {"name": "frechet_efflite0_96", "label": "Fréchet distance"}
    assert scores_in_words(parsed(evaluation(0), other))[0].startswith("FID <of all>: 34.5")


def test_pairs_are_compared_within_a_protocol() -> None:
    chosen = of_sampler(0, "heun", 9, 20.0)
    chosen["sample"]["config"]["sample"]["classes"] = [1, 2]
    text = best_pairs(parsed(evaluation(0), evaluation(1), chosen))
    assert len(text) == 1 and "34.5 is the best of 2 pairs" in text[0]


def test_a_card_says_what_its_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of a sampler that is no longer asked for stay, by whatever weights it had."""
    words = build(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results/one/train_16-box"
    (run / "metrics").mkdir(parents=True)
    for file in tmp_path.glob("heun-18-seed*.json"):
        shutil.copy2(file, run / "metrics")
    (run / "metrics/heun-9-seed0.json").write_text(json.dumps(of_sampler(0, "heun", 9, 1.0)))
    report.main([*words[:-1], f"out={run / 'report'}"])
    page = (run / "report/index.html").read_text()
    card = write_cards(tmp_path / "results").read_text()
    lead = "FID &lt;of all&gt;: 35 for 12 samples (heun-18, seeds 0, 1)"
    assert lead in page and lead in card and "heun-9" not in card

"""The report of a run on documents: its score, table and examples, in files that stand alone."""

import re
from pathlib import Path

import pytest

from pipeline import predict, prepare, report, score, train
from pipeline.base.errors import UserError
from pipeline.concept.pack import Record
from pipeline.concept.score_record import Scores
from pipeline.reporting import front_pages, overview
from pipeline.reporting.sentences import in_words
from tests.concept.documents import WORDS, rows_of, vectors_of, write_parquet
from tests.reporting.test_front_pages import BROWSER, seen

RUN = Path("results/lcm_mse_smoke/made")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on documents with texts, each step with its own defaults."""
    root = tmp_path_factory.mktemp("report")
    rows = rows_of(vectors_of([9, 4, 12] * 8))
    for place, row in enumerate(rows):
        row["text_sentences"] = [f"{place} <{n}> é" for n in range(len(row["text_sentences"]))]
    write_parquet(root / "set" / "split=train" / "0.parquet", rows)
    words = [*WORDS, "concept.source=parquet", f"data.path={root}/pack"]
    words += [f"data.dir={root}/set", "concept.held_out=0.4", "train.images=60"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        prepare.prepare(words)
        for step in (train, predict, score):
            step.main(words)
        report.main([*words, *report_words()])
    return root


def report_words() -> list[str]:
    record, scores = "record=results/data/made.json", f"metrics={RUN}/metrics/scores.json"
    return [f"curve={RUN}/train/curve.jsonl", record, scores]


def test_the_page_says_how_good_it_is_beside_both_baselines(root: Path) -> None:
    folder = root / RUN / "report"
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "summary.txt", "curve.png", "config.json")
    }
    scores = Scores.read(root / RUN / "metrics" / "scores.json")
    page, text = ((folder / name).read_text() for name in ("index.html", "summary.txt"))
    for line in in_words(scores):
        assert line in page and line.split(":")[0] in text
    for name, row in scores.predictors.items():
        assert f"{row.squared_error:.4g}" in page and re.search(rf"^{name}  ", text, re.M)
    assert all(len(line) <= 110 for line in text.splitlines())
    links = re.findall(r'<a href="([^"]+)"', page)
    wanted = {"scores.json", "made.json", "curve.jsonl", "summary.txt", "index.html"}
    assert {Path(link).name for link in links} == wanted
    assert all((folder / link).exists() for link in links if "index" not in link)
    assert re.findall(r'<img src="(data:image/png)', page)


def test_examples_are_texts_of_held_out_documents(root: Path) -> None:
    scores = Scores.read(root / RUN / "metrics" / "scores.json")
    assert len(scores.examples) == 5
    for example in scores.examples:
        assert example.before == f"{example.document} <{example.place - 1}> é"
        assert example.true == f"{example.document} <{example.place}> é"
        assert re.fullmatch(r"\d+ <\d+> é", example.nearest)
    page = (root / RUN / "report" / "index.html").read_text()
    first = scores.examples[0]
    assert f"<dd>{first.document} &lt;{first.place}&gt; é</dd>" in page


def test_all_experiments_have_it_among_them(root: Path) -> None:
    page = front_pages.write_cards(root / "results").read_text()
    scores = Scores.read(root / RUN / "metrics" / "scores.json")
    assert in_words(scores)[0] in page and "curve.png" in page
    assert overview.find(root / "results").left_out == []


def test_what_is_missing_or_of_others_is_one_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="the report needs curve=... metrics=... on its command"):
        report.main([*WORDS, report_words()[1]])
    record = Record.read(Path("results/data/made.json"))
    hashes = record.sha256.model_copy(update={"vectors": "0" * 64})
    record.model_copy(update={"sha256": hashes}).write(Path("other.json"))
    with pytest.raises(UserError, match="is of other documents than other.json"):
        report.main([*WORDS, *report_words(), "record=other.json"])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="NOT TESTED: no Chromium is installed")
@pytest.mark.parametrize("width", [1400, 500])
def test_a_browser_shows_it(root: Path, width: int) -> None:
    page = root / RUN / "report" / "index.html"
    assert seen(page, width) == {"images": [True], "wide": False}
    page.with_name("seen.html").unlink()

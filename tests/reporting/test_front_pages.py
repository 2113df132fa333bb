"""The pages that open on pictures, also as a browser sees them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline import report
from pipeline.reporting import front_pages
from tests.report_inputs import build, evaluation, parsed

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
LOADED = """
<script>
addEventListener("load", () => {
  const images = [...document.images].map(image => image.complete && image.naturalWidth > 0);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.seen = JSON.stringify({images, wide});
});
</script>
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of one run, with its report."""
    words = build(tmp_path, seeds=(0, 1))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results/one & x#1/train_16-box"
    (run / "metrics").mkdir(parents=True)
    for file in tmp_path.glob("heun-18-seed*.json"):
        shutil.copy2(file, run / "metrics")
    report.main([*words[:-1], f"out={run / 'report'}"])
    front_pages.write_cards(tmp_path / "results")
    return tmp_path / "results"


def test_the_scores_in_words() -> None:
    first, second = front_pages.scores_in_words(parsed(evaluation(1), evaluation(0)))
    assert first == (
        "FID <of all>: 35 for 12 samples (heun-18, seeds 1, 0); at 9 images of the first seed "
        "55.5, 1% of the way from 12.25 (other real images) to 4,321 (noise)."
    )
    assert re.fullmatch(r"[\d.]+% of the samples are classified as their class \(.+\)\.", second)


def test_a_run_without_scores_has_a_page(tmp_path: Path) -> None:
    nothing = evaluation(0) | {"metrics": [], "class_accuracy": None}
    assert front_pages.scores_in_words(parsed(nothing)) == []


def test_the_page_of_a_run_holds_its_pictures_and_leads_to_its_files(results: Path) -> None:
    page = results / "one & x#1/train_16-box/report/index.html"
    text = page.read_text()
    sources = re.findall(r'<img src="([^"]+)"', text)
    some_runs = {"surface.png", "milestones.png"}  # with a search, with scored milestones
    assert len(sources) == len({*front_pages.FIGURES} - some_runs)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    links = [unquote(link) for link in re.findall(r'<a href="([^"]+)"', text)]
    assert len(links) >= 6 and all((page.parent / link).exists() for link in links), links
    assert text.index("<img") < text.index("<table")  # opens on the picture


def test_cards_come_newest_first_and_lead_to_their_run(results: Path) -> None:
    old = results / "one & x#1/train_16-box"
    shutil.copytree(old, results / "two/train_16-box")
    os.utime(old / "report/index.html", (1, 1))
    text = front_pages.write_cards(results).read_text()
    assert re.findall(r"<h2>(\w+)", text) == ["two", "one"]
    for address in re.findall(r'(?:href|src)="([^"]+)"', text):
        assert address == "experiments.html" or (results / unquote(address)).exists()
    assert "seeds 0, 1" in text


def test_no_runs_make_a_page_too(tmp_path: Path) -> None:
    assert "No runs yet." in front_pages.write_cards(tmp_path).read_text()


def seen(page: Path, width: int) -> dict[str, object]:
    """What a browser `width` px wide sees: whether each image is there, whether it must scroll."""
    copied = page.with_name("seen.html")
    copied.write_text(page.read_text().replace("</body>", LOADED + "</body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *words, copied.absolute().as_uri()],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(
        re.search(r'data-seen="([^"]+)"', done.stdout)[1].replace("&quot;", '"')  # type: ignore[index]
    )


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="NOT TESTED: no Chromium is installed")
@pytest.mark.parametrize("width", [1400, 500])
def test_a_browser_shows_both_pages(results: Path, width: int) -> None:
    pictures = {"index.html": 1, "one & x#1/train_16-box/report/index.html": 4}
    for name, count in pictures.items():
        assert seen(results / name, width) == {"images": [True] * count, "wide": False}

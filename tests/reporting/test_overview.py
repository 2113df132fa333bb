"""The table over experiments: every score that lies in the results, and nothing that cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.reporting import overview, tables
from tests.report_inputs import SHA256, of_sampler


def put(root: Path, experiment: str, result: dict[str, Any], data: str = "train_64-box") -> Path:
    """Write a metrics file where the pipeline has it."""
    sample = result["sample"]
    folder = root / experiment / data / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    path = folder / f"{sample['sampler']}-seed{sample['seed']}.json"
    path.write_text(json.dumps(result))
    return path


def result(seed: int, steps: int = 9, value: float = 5.0, **protocol: Any) -> dict[str, Any]:
    """A metrics file with all facts about its sample."""
    found = of_sampler(seed, "heun", steps, value)
    found["sample"] |= {"weights_sha256": SHA256, "train": {"images": 64_000, "gpu_hours": 12.5}}
    return found | {"protocol": {"extractor": "dinov2-vit-s-14"} | protocol}


def test_seeds_join_and_experiments_do_not(tmp_path: Path) -> None:
    for seed, value in ((0, 4.0), (1, 6.0)):
        put(tmp_path, "one", result(seed, value=value))
    put(tmp_path, "two", result(0, value=3.0))
    found = overview.find(tmp_path)
    fid = [row for row in found.rows if row.name == "fid"]
    assert [row.experiment for row in fid] == ["two", "one"]  # the best first
    row = fid[1]
    assert (row.seeds, row.mean, row.min, row.max) == ("0, 1", 5.0, 4.0, 6.0)
    assert (row.trained, row.gpu_hours, row.weights) == (64_000, 12.5, SHA256[:8])
    assert (row.data, row.nfe_mean) == ("train_64-box", 18)
    assert (row.num_images, row.floor, row.sampler) == (12, 12.25, "heun-9")
    assert row.ceiling == 4321
    names = [row.name for row in found.rows]
    assert names == [*["fid"] * 2, *["class_accuracy"] * 2, *["recall"] * 2]


def test_scores_of_other_protocols_or_weights_are_never_averaged(tmp_path: Path) -> None:
    put(tmp_path, "one", result(0))
    put(tmp_path, "one", result(1, kid_subsets=7))
    other = result(2)
    other["sample"]["weights_sha256"] = "f" * 64
    put(tmp_path, "one", other)
    found = overview.find(tmp_path)
    assert sorted(row.seeds for row in found.rows if row.name == "fid") == ["0", "1", "2"]
    assert found.protocols == [
        "Protocol 1: extractor: dinov2-vit-s-14, sample.classes: balanced",
        "Protocol 2: extractor: dinov2-vit-s-14, kid_subsets: 7, sample.classes: balanced",
    ]
    assert {row.seeds: row.protocol for row in found.rows} == {"0": 1, "1": 2, "2": 1}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"metrics": []}', '{"metrics": [3]}', "\udcff\udcfe", "[" * 100_000],
)
def test_what_is_no_metrics_file_is_named_and_left_out(tmp_path: Path, content: str) -> None:
    put(tmp_path, "good", result(0))
    bad = tmp_path / "bad" / "x_8-box" / "metrics" / "theirs.json"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(content.encode(errors="surrogateescape"))
    found = overview.write(tmp_path)
    assert {row.experiment for row in found.rows} == {"good"}
    (line,) = found.left_out
    assert line.startswith("Left out: ") and str(bad) in line and "\n" not in line
    assert "theirs.json" in found.page.read_text()


def test_samples_of_another_program_need_no_facts_of_ours(tmp_path: Path) -> None:
    bare = result(0)
    for key in ("weights_sha256", "config", "train"):
        del bare["sample"][key]
    put(tmp_path, "bare", bare | {"protocol": {}})
    row = overview.find(tmp_path).rows[0]
    assert (row.trained, row.gpu_hours, row.weights) == (None, None, "")


def test_a_folder_in_place_of_a_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "metrics" / "folder.json").mkdir(parents=True)
    assert "folder.json" in overview.find(tmp_path).left_out[0]


def test_the_page_and_the_text_hold_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overview, "RESULTS", tmp_path)
    overview.main([])
    assert "There are no scores yet." in capsys.readouterr().out
    started = result(0, value=4.321)
    start = {"file": "w.safetensors", "sha256": SHA256, "weights": "weights after 5 images"}
    started["sample"]["train"] |= {"start": start}
    put(tmp_path, "a<b", started)
    overview.main([])
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.startswith("fid"))
    assert row == [
        "fid",
        "train_64-box",
        "a<b",
        "heun-9",
        "0",
        "18",
        "12",
        "4.321",
        "↓",
        "4.321",
        "1",
        "1",
    ]
    assert "Protocol 1: extractor: dinov2-vit-s-14" in text
    assert max(map(len, text.splitlines()[:-1])) <= tables.WIDTH
    page = (tmp_path / "experiments.html").read_text()
    assert all(f"<button>{head}</button>" in page for head in overview.COLUMNS.values())
    assert f"w.safetensors {SHA256[:12]}" in page
    assert "a&lt;b" in page and "a<b" not in page and "http" not in page
    with pytest.raises(UserError, match="takes none"):
        overview.main(["out=x"])

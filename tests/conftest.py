"""Shared by all tests: small configurations, the repository's folder, peer weights by name."""

import copy
import gc
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline.base.processes import STOP_SIGNALS
from pipeline.config import load
from pipeline.config.reading import read_values
from pipeline.config.schema import Config
from pipeline.config.words import parse_overrides
from pipeline.data.pack import Hashes, Record
from pipeline.images.sources.find import resolve_image_set
from pipeline.interop import flow_matching_network

ROOT = Path(__file__).parent.parent

settings.register_profile("shared machines", deadline=None)  # no test of seconds
settings.load_profile("shared machines")


# Files that take longest; then the one whose run others of its folder wait for, and those others
FIRST = (
    "launching/test_cluster",
    "training/test_faults",
    "workflow/test_more_stages",
    "reporting/test_pages",
    "training/test_same_model",
    "workflow/test_kubernetes",
    "bench/test_gpu_check",
    "images/test_resume",
    "images/test_photos",
    "launching/test_nodes",
    "launching/test_submit",
    "training/test_edm2",
    "workflow/test_workflow",
    "workflow/test_training_again",
    "workflow/test_documents",
    "workflow/test_packs",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no worker is left with one at the end."""
    place = {f"tests/{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(FIRST)))


def pytest_collection_finish() -> None:
    """What is there before the first test stays: the garbage collector may pass over it."""
    gc.collect()
    gc.freeze()


def resolved(*overrides: str, environment: dict[str, str] | None = None) -> Config:
    """config.yaml with `key=value` overrides; no environment unless given."""
    base = load.load_yaml(load.DEFAULT_FILE)
    config = load.resolve(base, parse_overrides(overrides), environment or {})
    if config.workload == "concept":  # no images
        return config
    return resolve_image_set(config, environment or {})


@pytest.fixture
def tiny() -> Config:
    """The `tiny` experiment."""
    return resolved("experiment=tiny")


@pytest.fixture(autouse=True)
def _no_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the caller's IMAGENET_* variables."""
    for name in [n for n in os.environ if n.startswith("IMAGENET_")]:
        monkeypatch.delenv(name)


@cache
def parsed(text: str) -> Any:
    """The values in a YAML text."""
    return read_values(text)


@pytest.fixture(autouse=True)
def _parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of tests read config.yaml: each text is parsed once."""
    monkeypatch.setattr(load, "read_values", lambda text: copy.deepcopy(parsed(text)))


def our_state(fixture: Any) -> dict[str, torch.Tensor]:
    """The reference's state dict in a fixture, under our names and shapes."""
    return flow_matching_network.our_state(peer_state(fixture))


def peer_state(fixture: Any) -> dict[str, torch.Tensor]:
    """The reference's state dict in a fixture, under its own names."""
    names = [key for key in fixture.files if key.startswith("state/")]
    return {name.removeprefix("state/"): torch.from_numpy(fixture[name]) for name in names}


def load_fixture(name: str) -> tuple[Any, dict[str, Any]]:
    """A numeric fixture and its constructor arguments."""
    fixture = np.load(ROOT / "tests" / "fixtures" / f"{name}.npz")
    return fixture, json.loads(str(fixture["config"]))


def write_pack(folder: Path, num: int, size: int, seed: int = 0, classes: int = 2) -> Record:
    """A pack of random images in `folder`; returns its record."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    labels = np.sort(np.arange(num, dtype=np.int64) % classes)
    digests = (hashlib.sha256(array.tobytes()).hexdigest() for array in (images, labels))
    record = Record(
        source="shapes_tiny",
        resolution=size,
        recipe="box",
        num_images=num,
        classes=[f"class{k}" for k in range(classes)],
        sha256=Hashes(images=next(digests), labels=next(digests)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    record.write(folder / "manifest.json")
    return record


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk needs root, to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(autouse=True)
def _restore_signals() -> Iterator[None]:
    """Steps that ran in this process leave no signal handlers to the next test."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield
    for number, handler in zip(STOP_SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 40 random images of 8 px in ten classes."""
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, num=40, size=8, classes=10)
    return folder

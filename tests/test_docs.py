"""The front door and the README say what is there."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.config.load import known_keys
from pipeline.config.schema import Config
from tests.conftest import ROOT


def test_make_help_lists_the_targets() -> None:
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("smoke", "data", "train", "sample", "evaluate", "report", "plan", "test"):
        assert re.search(rf"^make {target} +\S", text, re.M), text


def test_the_readme_names_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(), re.M)
    assert len(named) > 5 and set(named) <= targets


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures and all((ROOT / picture).stat().st_size > 0 for picture in pictures)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OLDER_KEYS = {"downsample.fast"}  # pipeline.config.older_form still reads it
SECTIONS = "|".join(name for name in Config.model_fields if name != "experiment")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_modules_and_keys_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https:") or (page.parent / link).exists(), link
    for module in re.findall(r"-m (pipeline(?:\.\w+)+)", text):
        if module != "pipeline.STEP":
            assert importlib.util.find_spec(module), module
    keys = set(re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)?)(?![\w/(])", text))
    files = {key for key in keys if key.endswith((".json", ".py", ".npy", ".png", ".html"))}
    assert keys - files <= {*known_keys(), *OLDER_KEYS}


def test_imports_point_down_only() -> None:
    """The contracts in pyproject.toml: packages by layer, and steps that import no other step."""
    command = ["lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

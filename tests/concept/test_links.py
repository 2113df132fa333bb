"""Documents in folders that are links."""

from pathlib import Path

import pytest

from pipeline.concept import parquet, text
from tests.conftest import resolved


@pytest.mark.parametrize("ending", [".txt", ".parquet"])
def test_links_to_folders_are_followed_and_circles_are_not(tmp_path: Path, ending: str) -> None:
    here = tmp_path / "split=train"
    for folder in (here / "a", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / f"one{ending}").touch()
    (here / "b").symlink_to(tmp_path / "elsewhere")
    (here / "a" / "up").symlink_to(here)
    if ending == ".txt":
        found = text.files(here)
    else:
        found = parquet.files(tmp_path, resolved("experiment=lcm_mse_smoke").concept)
    assert found == [here / "a" / f"one{ending}", here / "b" / f"one{ending}"]

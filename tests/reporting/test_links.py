"""Links of a page lead to their files, whatever the names of these."""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import pytest

from pipeline.reporting.front_pages import link_list, relative


@pytest.mark.parametrize("name", ["seed0", "run#1", "why?", "a%41", "s:x", 'q"<b>&', "ä \udcff"])
def test_a_link_leads_to_its_file(tmp_path: Path, name: str) -> None:
    out = tmp_path / "report"
    page = link_list(relative([tmp_path / name / "images.npy", out / name], out))
    for address, target in zip(
        re.findall('href="([^"]*)"', page),
        [tmp_path / name / "images.npy", out / name],
        strict=True,
    ):
        place = urlsplit(urljoin((out / "index.html").as_uri(), address))
        assert (place.scheme, place.query, place.fragment) == ("file", "", "")
        assert os.fsdecode(unquote_to_bytes(place.path)) == str(target)

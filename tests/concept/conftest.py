"""Shared by the tests of documents."""

from pathlib import Path

import pytest

from tests.concept.documents import made_pack


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack of made documents."""
    folder = tmp_path_factory.mktemp("documents") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        made_pack(folder, patch)
    return folder

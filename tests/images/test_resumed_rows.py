"""A run that goes on after bad images: every row keeps its name, whatever was decoded again."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.images import workers
from tests.test_downsample import make, same


def decode_ahead(
    batches: Iterable[workers.Batch], pack_format: Any, rows_file: Path, *_: Any
) -> Iterator[Any]:
    """As a pool of processes does it: batches are taken before those in front are decoded."""
    for batch in list(batches):
        yield batch, workers.decode_into(rows_file, pack_format, batch.first, batch.items)


def test_images_that_were_mended_do_not_move_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a/0", "a/1", "b/0", "c/0", "c/1")):
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(path)
    bad = tmp_path / "train" / "a" / "1.png"
    content = bad.read_bytes()
    monkeypatch.setattr(workers, "decode_all", decode_ahead)

    bad.write_bytes(content[:40])
    with pytest.raises(UserError, match="unreadable"):
        make(tmp_path)
    bad.write_bytes(content)
    resumed = make(tmp_path)
    assert resumed[1][:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]
    assert same(resumed, make(tmp_path, f"data.pack_dir={tmp_path}/anew"))

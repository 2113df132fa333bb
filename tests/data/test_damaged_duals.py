"""Files of duals with a bit changed."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.data.duals import Duals, load_duals, save_duals


def test_a_changed_bit_of_the_directory_is_one_sentence(tmp_path: Path) -> None:
    """Zip's flags and methods, for which zipfile has errors of other kinds."""
    path = tmp_path / "duals.npz"
    duals = Duals(np.arange(5.0), "a" * 64, "b" * 64, True, False, 0.1, 0.1, 0.1, 3.0, True)
    save_duals(path, duals)
    whole = path.read_bytes()
    entry = whole.index(b"PK\1\2")  # the first of the directory
    for byte, bit in ((6, 6), (8, 0), (10, 2)):  # version needed, flags, method
        path.write_bytes(
            whole[: entry + byte]
            + bytes([whole[entry + byte] ^ 1 << bit])
            + whole[entry + byte + 1 :]
        )
        with pytest.raises(UserError, match=r"duals\.npz are damaged"):
            load_duals(path)

"""Headers of .npy files."""

import io

import numpy as np
import pytest

from pipeline.base.npy import IMAGES_HEADER_BYTES, Header, read_header, write_header


@pytest.mark.parametrize("num", [0, 1, 1_281_167, 10**15])
def test_a_header_for_streamed_images_is_of_one_size(num: int) -> None:
    stream = io.BytesIO()
    write_header(stream, (num, 64, 64, 3))
    assert stream.tell() == IMAGES_HEADER_BYTES
    stream.seek(0)
    assert read_header(stream) == Header((num, 64, 64, 3), False, np.dtype(np.uint8))
    assert stream.tell() == IMAGES_HEADER_BYTES


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_of_both_versions(version: tuple[int, int]) -> None:
    stream, array = io.BytesIO(), np.zeros((2, 3), "<f4", order="F")
    np.lib.format.write_array(stream, array, version)
    stream.seek(0)
    assert read_header(stream) == Header((2, 3), True, np.dtype("<f4"))
    assert len(stream.read()) == array.nbytes


def test_an_unknown_version_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown version \(9, 0\) of \.npy"):
        read_header(io.BytesIO(b"\x93NUMPY\x09\x00" + bytes(120)))

"""Formats of image files: the suffixes and modes that are read, and the bytes they begin with.

Packing and scoring share these, so that a folder that can be packed can be scored as a whole.
"""

import re

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
# What torchvision's ImageFolder reads, and other suffixes of the same formats.
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    *(".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Pillow's formats of those; others, such as EPS, may run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
DEEP = ("I", "F")  # first letters of Pillow's modes with more than 8 bits per channel
DEEP_PROBLEM = "more than 8 bits per channel"
SIGNED_PROBLEM = "signed values"
SAMPLE_FORMAT, SIGNED = 339, 2  # a tag of TIFF, and its value for signed integers

HEAD_BYTES = 16  # of a file, enough for STARTS
# Those formats and others that people keep images in: AVIF and HEIC, JPEG 2000, JPEG XL.
STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP"
    rb"|P[1-6][ \t\r\n]|.{4}ftyp(avi[fs]|hei[cfsx]|mif1|msf1)"
    rb"|\0\0\0\x0c(jP  |JXL )|\xff\x0a",
    re.DOTALL,
)


def is_image(name: str) -> bool:
    """Whether a file's name is an image's: a known suffix, not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether the last part of a path begins with a dot."""
    return name[name.rfind("/") + 1 :].startswith(".")


def begins_as_image(head: bytes) -> bool:
    """Whether a file with these first HEAD_BYTES bytes holds an image, read here or not."""
    return STARTS.match(head) is not None


def value_problem(image: Image.Image) -> str | None:
    """Why an opened file's values are not levels of 0 to 255; None if they are.

    Pillow makes values of more than 8 bits white or black, and negative ones of a TIFF bright.
    16 bits per channel in colour are not meant: Pillow itself takes the upper 8 of them.
    """
    if image.mode.startswith(DEEP):
        return DEEP_PROBLEM
    is_signed = isinstance(image, TiffImageFile) and SIGNED in image.tag_v2.get(SAMPLE_FORMAT, ())
    return SIGNED_PROBLEM if is_signed else None

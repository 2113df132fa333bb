"""Formats of image files: the suffixes and modes that are read, and the bytes they begin with.

Packing and scoring share these, so that a folder that can be packed can be scored as a whole.
"""

import re

from PIL import Image

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


def is_deep(image: Image.Image) -> bool:
    """Whether an opened file has more than 8 bits per channel, which Pillow makes white or black.

    16 bits per channel in colour are not meant: Pillow itself takes the upper 8 of them.
    """
    return image.mode.startswith(DEEP)

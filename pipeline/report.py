"""The report of one run: training curve, samples beside real images, table of metrics.

    python -m pipeline.report curve=CURVE.jsonl record=RECORD.json samples=FOLDER[,FOLDER...] \
        metrics=FILE.json[,FILE.json...] out=FOLDER [config=...]

Reads what the earlier steps wrote and the pack that the record names. Everything is read, checked
and drawn before the first file is written. Ends by printing the table.
"""

import html
import io
import json
import string
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pydantic import BaseModel, ValidationError

from pipeline.config import Config, load_step
from pipeline.errors import UserError, run_main
from pipeline.files import atomic_stream, load_npy, read_json
from pipeline.grid import Panel, panel_grid, shorten
from pipeline.layout import pack_folder

WORDS = ("curve", "record", "samples", "metrics", "out")
WIDTH = 110  # columns of the plain-text table
NARROWEST = 12  # columns to which a name is shortened at most
SMOOTHING = 0.05  # share of all rows in the mean that smooths the loss
INK, PALE, ACCENT = "#1f4e79", "#9dbbd8", "#c1440e"


# --- reading -----------------------------------------------------------------------------------


class CurveRow(BaseModel):
    """One row of the training curve: steps and images so far, means since the row before."""

    step: int
    images: int
    loss: float
    grad_norm: float
    images_per_s: float


class Record(BaseModel):
    """What the report needs of the pack's record."""

    source: Literal["train", "train_blurred", "shapes", "shapes_tiny"]
    resolution: int
    recipe: Literal["box"]
    num_images: int
    classes: list[str]


class Sampling(BaseModel):
    """How one set of samples was made, and how fast (`seconds`: wall time)."""

    sampler: str
    seed: int
    num: int
    nfe_mean: float
    nfe_max: float
    images_per_s: float
    seconds: float
    world_size: int
    device: str
    precision: str

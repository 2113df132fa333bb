"""Documents for the tests, as Parquet files of the Large Concept Model's layout and as packs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.concept import made
from pipeline.concept.make import make
from pipeline.concept.spool import Spool
from pipeline.config.load import load_step
from pipeline.config.schema import Config

DIMENSION = 6
WORDS = (
    "experiment=lcm_mse_smoke",
    f"concept.dimension={DIMENSION}",
    "concept.max_sentences=8",
    "concept.held_out=0",
    "model.channels=16",
    "model.heads=2",
    "model.inner_channels=16",
    "model.layers=1",
    "model.dropout=0.1",
    "train.images=480",
    "train.batch=12",
    "train.warmup_images=24",
    "train.lr_cycle_images=960",
    "train.precision=fp32",
    "runtime.log_images=12",
    "runtime.checkpoint_images=24",
    "runtime.progress_seconds=1000",
    "runtime.device=cpu",
    "launch.launcher=none",
)

TWO_TOWER = (
    "model={kind: lcm_two_tower, denoiser_layers: 1, noise_levels: 10, context_dropout: 0.2}",
)


def config_of(*words: str) -> Config:
    return load_step([*WORDS, *words], (), {})[0]


def vectors_of(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Documents of these lengths."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(n, DIMENSION)).astype(np.float32) for n in lengths]


def rows_of(documents: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    return [
        {
            "text_sentences": [f"Sentence {i}." for i in range(len(vectors))],
            "text_sentences_sonar_emb": [row.tolist() for row in vectors],
        }
        for vectors in documents
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> None:
    """A file of the layout; `kind`: of a vector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        {
            "text_sentences": pa.list_(pa.string()),
            "text_sentences_sonar_emb": pa.list_(kind or pa.list_(pa.float32(), DIMENSION)),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=3)


def made_pack(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Config:
    """A small pack of made documents; the configuration that reads it."""
    monkeypatch.setattr(made, "DOCUMENTS", 24)
    config = config_of(f"data.path={folder}", *words)
    make(config)
    return config


def make_one_file(config: Config) -> None:
    """Begin a pack, and be killed when the first of its files is finished."""
    add = Spool.add

    def killed_at_second(self: Spool, name: str, documents: Any) -> None:
        if self.finished:
            raise SystemExit("killed")
        add(self, name, documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "add", killed_at_second)
        with pytest.raises(SystemExit):
            make(config)

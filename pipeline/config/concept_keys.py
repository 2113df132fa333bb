"""Keys of `concept`: documents as sentence vectors, which the workload concept trains on."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import PositiveInt, Section

OF_TRAINING = ("scale", "max_sentences")  # keys that the vectors of a pack do not depend on


class Concept(Section):
    # The documents
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "documents"
    source: Literal["parquet", "text", "made"] = "parquet"
    # Their places in Parquet files
    split: str = "train"
    sentences_column: str = "text_sentences"
    vectors_column: str = "text_sentences_sonar_emb"
    # Their vectors
    dimension: PositiveInt = 1024
    suffix: str | None = None  # .npy file of a vector that ends each document
    # As the network sees them
    scale: Literal["quartiles", "lcm_tails"] = "quartiles"
    max_sentences: Annotated[int, Field(ge=2)] = 128  # of a piece of a document

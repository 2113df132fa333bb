"""Keys of `concept`: documents as sentence vectors, which the workload concept trains on."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import PositiveInt, Section

# Keys that the vectors of a pack do not depend on
OF_TRAINING = ("scale", "max_sentences", "held_out")
OF_SCORES = ("num_scored",)
OF_DENOISING = ("denoising_steps", "guidance", "guidance_rescale", "initial_noise", "noise_seed")


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
    # Pairs: a prompt, and what follows it, which alone is learned and scored
    pairs: bool = False
    prompt_sentences_column: str = "prompt_sentences"
    prompt_vectors_column: str = "prompt_sentences_sonar_emb"
    prompt_suffix: str | None = None  # .npy file of a vector that ends each prompt
    # As the network sees them
    scale: Literal["quartiles", "lcm_tails", "start"] = "quartiles"
    max_sentences: Annotated[int, Field(ge=2)] = 128  # of a piece of a document
    # What is kept for scores
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of the documents
    num_scored: PositiveInt = 10000  # targets; whole documents until it is reached
    # How the two-tower network predicts
    denoising_steps: PositiveInt = 40
    guidance: Annotated[float, Field(ge=0)] = 3.0  # 1: none
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.7
    initial_noise: Annotated[float, Field(ge=0)] = 0.6  # standard deviation at the start
    noise_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

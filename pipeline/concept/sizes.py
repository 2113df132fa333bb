"""Training length, network size and sizes on disk of an experiment on documents, for its plan."""

import math

import numpy as np
import torch

from pipeline.base.errors import UserError
from pipeline.base.text import size
from pipeline.concept.families import network
from pipeline.concept.held_out import held_out
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.pack import Record, pack_folder, read_arrays
from pipeline.concept.pieces import pieces
from pipeline.config.model_keys import DecoderKeys
from pipeline.config.schema import Config


def num_parameters(config: Config) -> int:
    """Parameters of the network, counted without memory for them."""
    assert isinstance(config.model, DecoderKeys) and config.concept is not None
    nothing = Normaliser(*np.zeros((2, config.concept.dimension), np.float32))
    with torch.device("meta"):
        net = network(config.model, nothing, config.concept.max_sentences)
    return sum(p.numel() for p in net.parameters())


def facts(config: Config) -> str:
    """Training length, network size and sizes on disk, a line each."""
    train, num = config.train, num_parameters(config)
    saved, runtime = train.num_copies * 4 * num, config.runtime
    num_kept = runtime.keep_checkpoints + train.num_milestones(runtime.milestone_images)
    lines = {
        "network": f"{num / 1e6:.1f} M parameters",
        "training": f"{math.ceil(train.images / train.batch):,} steps of {train.batch:,} = "
        f"{train.images:,} pieces of documents, {epochs(config)}",
        "checkpoints": f"{size(saved)} each, {num_kept:,} kept",
        "weights": size(4 * num),
    }
    return "\n".join(f"  {name:<13} {text}" for name, text in lines.items())


def epochs(config: Config) -> str:
    """The length of the training in epochs, if the pack is there."""
    assert config.concept is not None
    try:
        folder = pack_folder(config)
        record = Record.read(folder / "manifest.json")
        offsets = read_arrays(folder, record)[1]
    except UserError:  # not made yet
        return "epochs: not known yet"
    scored = held_out(record.num_documents, config.concept.held_out)
    num = len(pieces(offsets, config.concept.max_sentences, ~scored).starts)
    if not num:
        return "no epoch: no document has two sentences"
    return f"{config.train.images / num:,.1f} epochs of {num:,}"

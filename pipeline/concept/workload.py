"""Next-sentence regression as a workload: the vector after each sentence of a document.

An item is a piece of a document. The trainer averages what `loss` returns over the passes and
ranks of a step; each is scaled so that the step's gradient is that of the mean over all targets of
its global batch, whose pieces and lengths are known from its positions alone.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.compute import draws
from pipeline.concept.held_out import held_out
from pipeline.concept.loss import squared_error
from pipeline.concept.network import LCM, Layer
from pipeline.concept.pack import Documents, check_arrays, pack_folder
from pipeline.concept.pieces import pieces
from pipeline.config.model_keys import DecoderKeys, LCMKeys
from pipeline.config.schema import Config
from pipeline.data.reader import moved, rows_at

# Sentences times channels that one forward and backward pass takes at most if runtime.micro_batch
# is auto and no GPU is there to measure.
AUTO_NUMBERS = 2**22
MOST_PIECES = 16  # named in one message


@dataclass(frozen=True)
class Batch:
    """Raw vectors (B,T,D) float32, zeros after the lengths (B,) int64 of the pieces.

    `contexts` (B,) int64: sentences at the beginning of each that are no targets. `keys` (B,2)
    int32: random words of the network's dropout; None: it has none. `scale`: the sum of the errors
    times it, averaged over all batches of a step, is the mean per target of the step.
    """

    vectors: Tensor
    lengths: Tensor
    contexts: Tensor
    keys: Tensor | None
    scale: float


class NextSentence:
    """Trains the vector after each sentence of a document, from those up to it; of a pair, the
    vectors of its target alone.

    A workload as pipeline/training/workload.py describes it.
    """

    UNPREDICTED = 1  # sentences at the beginning of a piece that are no targets, but for pairs

    def __init__(self, config: Config, documents: Documents) -> None:
        assert isinstance(config.model, DecoderKeys) and config.concept is not None
        self.config, self.documents, self.keys = config, documents, config.model
        self.most = config.concept.max_sentences
        scored = held_out(documents.record.num_documents, config.concept.held_out)
        self.pieces = pieces(documents.offsets, self.most, ~scored, documents.prompts)
        if documents.prompts is None:
            unpredicted = np.full_like(self.pieces.lengths, self.UNPREDICTED)
            self.pieces = self.pieces._replace(contexts=unpredicted)
        if not len(self.pieces.starts):
            raise UserError(
                f"pack {pack_folder(config)} has no document of two sentences to train on: nothing "
                "can be predicted"
            )
        self.device = torch.device("cpu")
        self.num_targets = lru_cache(maxsize=4)(self._num_targets)

    @property
    def num_items(self) -> int:
        """Pieces of the documents that are not held out."""
        return len(self.pieces.starts)

    @property
    def unit(self) -> str:
        """Pieces."""
        return "pieces"

    @property
    def most_items(self) -> int:
        """Pieces of one pass at most if no GPU can measure it."""
        return max(1, AUTO_NUMBERS // (self.most * self.keys.channels))

    def check(self) -> None:
        """Raise UserError if the pack's arrays are not those of its record."""
        check_arrays(pack_folder(self.config), self.documents.record)

    def place(self, device: torch.device, announce: bool) -> None:
        """Give batches on `device`, from the memory map."""
        if self.config.runtime.data_on_device is True:
            raise UserError(
                "runtime.data_on_device=true is for packs of images alone: give auto or false, "
                "which change no result"
            )
        self.device = device
        if announce:
            print(f"sentences: memory-mapped, {self.num_items:,} pieces", flush=True)

    def read_ahead(self, num_positions: int) -> None:
        """A batch is read when it is asked for: next to a pass over it that takes no time."""

    def build(self) -> nn.Module:
        """The network, with the normaliser among its buffers."""
        assert isinstance(self.keys, LCMKeys)
        return LCM(self.keys, self.documents.normaliser, self.most)

    def batch(self, positions: np.ndarray) -> Batch:
        """The pieces at positions (B,) of one step, all padded to the same length."""
        # Vectors of the pieces
        rows = rows_at(positions, self.config.train.seed, self.num_items)
        starts, lengths, contexts = self.pieces.part(rows)
        dimension = self.documents.record.dimension
        vectors = np.zeros((len(rows), self.most, dimension), np.float32)
        for place, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            vectors[place, :length] = self.documents.vectors[start : start + length]

        # Their share of the step
        step = int(positions[0]) // self.config.train.batch
        assert (positions // self.config.train.batch == step).all()
        num_batches = self.config.train.batch / len(rows)
        drops = max(self.keys.dropout, self.keys.final_dropout) > 0
        index = moved(positions, self.device)
        return Batch(
            vectors=moved(vectors, self.device),
            lengths=moved(lengths, self.device),
            contexts=moved(contexts, self.device),
            keys=draws.pairs(self.config.train.seed, draws.DROPOUT, index) if drops else None,
            scale=num_batches / self.num_targets(step),
        )

    def _num_targets(self, step: int) -> int:
        """Targets of the global batch of a step."""
        first, batch = step * self.config.train.batch, self.config.train.batch
        positions = np.arange(first, first + batch, dtype=np.int64)
        rows = rows_at(positions, self.config.train.seed, self.num_items)
        return int((self.pieces.lengths - self.pieces.contexts)[rows].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared distance per target, as this batch's share of the step: a float32 scalar."""
        predicted, normalised = model(batch.vectors, batch.keys)
        error = squared_error(predicted, normalised, batch.lengths, batch.contexts)
        return error * batch.scale

    def zeros(self, num: int, device: torch.device) -> Batch:
        """A batch of `num` pieces of full length, of zeros."""
        drops = max(self.keys.dropout, self.keys.final_dropout) > 0
        return Batch(
            vectors=torch.zeros(num, self.most, self.documents.record.dimension, device=device),
            lengths=torch.full((num,), self.most, device=device),
            contexts=torch.full((num,), self.UNPREDICTED, device=device),
            keys=torch.zeros(num, 2, dtype=torch.int32, device=device) if drops else None,
            scale=1.0 / (num * (self.most - self.UNPREDICTED)),
        )

    def blocks(self) -> tuple[type[nn.Module], ...]:
        """fsdp2 gathers the weights of a layer at a time."""
        return (Layer,)

    def after_step(self, net: nn.Module) -> None:
        """The weights stay as the optimiser leaves them."""

    def locate(self, positions: np.ndarray) -> str:
        """The documents and sentences of the pieces at the positions, the first few of them."""
        rows = rows_at(positions, self.config.train.seed, self.num_items)
        starts, offsets = self.pieces.starts[rows], self.documents.offsets
        documents = np.searchsorted(offsets, starts, side="right") - 1
        places = [
            f"{start - offsets[document]} to {start - offsets[document] + length - 1} of {document}"
            for start, document, length in zip(
                starts, documents, self.pieces.lengths[rows], strict=True
            )
        ]
        more = len(places) - MOST_PIECES
        shown = ", ".join(places[:MOST_PIECES])
        return f"sentences {shown}{f' and {more:,} more pieces' if more > 0 else ''} in the pack"

    def about(self) -> dict[str, object]:
        """The record of the pack, as JSON, with the hash of its normaliser."""
        return self.documents.about

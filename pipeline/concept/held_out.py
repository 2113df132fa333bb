"""Documents that training leaves out, so that predictions can be scored on them."""

import numpy as np
import torch

from pipeline.compute import draws

WORD = 0x6C636D  # the generator's seed: never that of a training


def held_out(num_documents: int, share: float) -> np.ndarray:
    """(K,) bool: whether each document is held out, a pure function of its number and the share.

    With a larger share in [0,1] the same documents are held out, and more of them. Whatever seeds
    trainings have, they are scored on the same documents.
    """
    numbers = torch.arange(num_documents, dtype=torch.int64)
    drawn: np.ndarray = draws.uniform(WORD, draws.HELD_OUT, numbers).numpy()
    return drawn < share

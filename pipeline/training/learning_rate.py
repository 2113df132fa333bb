"""The learning rate as a function of the images seen."""

import math

from pipeline.config.schema import Train

# Schedules that end at train.images: the weights depend on the length of the run.
ENDING = ("linear", "cosine")


def learning_rate(train: Train, images: int) -> float:
    """Rate of the step that starts after `images` images: warm-up times schedule, times train.lr.

    The warm-up rises linearly and reaches 1 in the step that ends at warmup_images.
    """
    warmup = min(1.0, (images + train.batch) / max(train.warmup_images, 1))
    return train.lr * warmup * schedule(train, images)


def schedule(train: Train, images: int) -> float:
    """Share in [0,1] of train.lr after `images` images, the warm-up apart.

    constant: 1. linear, cosine (half a period: Loshchilov & Hutter 2017, eq. 5): 1 up to the end
    of the warm-up, lr_final from train.images on. inverse_sqrt: 1 up to lr_decay_images, then
    falling with the root (Karras et al. 2024, eq. 67).
    """
    # Schedules without an end
    if train.lr_schedule == "inverse_sqrt":
        return math.sqrt(train.lr_decay_images / max(images, train.lr_decay_images))
    if train.lr_schedule not in ENDING:
        return 1.0
    # Schedules with an end
    length = max(train.images - train.warmup_images, 1)
    done = min(max(images - train.warmup_images, 0) / length, 1.0)
    decay = 1.0 - done if train.lr_schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
    return train.lr_final + (1.0 - train.lr_final) * decay

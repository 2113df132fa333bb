"""The learning rate as a function of the images seen."""

import math

from pipeline.config.train_keys import Train

# Schedules that end at train.images: the weights depend on the length of the run.
ENDING = ("linear", "cosine")


def learning_rate(train: Train, images: int) -> float:
    """Rate of the step that starts after `images` images: warm-up times schedule, times train.lr.

    The warm-up rises linearly. From 0 it reaches 1 in the step that ends at warmup_images; from
    train.warmup_from, its first step, in the one that starts there.
    """
    start = train.warmup_from
    if start is None:
        warmup = min(1.0, (images + train.batch) / max(train.warmup_images, 1))
    else:
        warmup = start + (1.0 - start) * min(1.0, images / max(train.warmup_images, 1))
    return train.lr * warmup * schedule(train, images)


def schedule(train: Train, images: int) -> float:
    """Share in [0,1] of train.lr after `images` images, the warm-up apart.

    constant: 1. linear, cosine (half a period: Loshchilov & Hutter 2017, eq. 5): 1 up to the end
    of the warm-up, lr_final from train.images on. cosine_restarts: after the warm-up from 1 to
    lr_final within lr_cycle_images, again and again (ibid.). inverse_sqrt: 1 up to lr_decay_images,
    then falling with the root (Karras et al. 2024, eq. 67).
    """
    # Schedules without an end
    if train.lr_schedule == "inverse_sqrt":
        return math.sqrt(train.lr_decay_images / max(images, train.lr_decay_images))
    if train.lr_schedule == "constant":
        return 1.0
    # Schedules with an end, and that of cycles
    since = max(images - train.warmup_images, 0)
    if train.lr_schedule == "cosine_restarts":
        assert train.lr_cycle_images is not None
        done = since % train.lr_cycle_images / train.lr_cycle_images
    else:
        done = min(since / max(train.images - train.warmup_images, 1), 1.0)
    decay = 1.0 - done if train.lr_schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
    return train.lr_final + (1.0 - train.lr_final) * decay

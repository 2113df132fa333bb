"""Weights averaged with a width that is chosen after the training: `sample.ema_width`.

    python -m pipeline.average experiment=edm2_s sample.ema_width=0.075
    python -m pipeline.average snapshots=FOLDER sample.ema_width=0.075 out=FILE

They are a sum of the averages that a training with train.ema=power has stored, up to
sample.ema_images or its end. `weights`: the file of weights of that training, which names the
folder; `snapshots`: the folder itself, also of a training that is not at its end, of which the last
moment is taken at which all widths were stored. It is a file of weights like all others. Neither a
GPU nor the data are needed.
"""

from pathlib import Path

from pipeline.base.errors import UserError, run_main
from pipeline.config.load import load_step
from pipeline.config.paths import average_file, check_profile, out_file
from pipeline.images.sources.find import resolve_image_set
from pipeline.steps import STEPS
from pipeline.training.averaging import Stored, about_of, find_stored, solve, weighted_sum
from pipeline.training.power_profile import Profile
from pipeline.training.weights_file import save_weights

STEP = STEPS["average"]


def main(argv: list[str]) -> None:
    """Solve for the shares of the stored averages, and write their sum."""
    # What is wanted
    config, words = load_step(argv, STEP.words)
    width = config.sample.ema_width
    if width is None:
        raise UserError("sample.ema_width is missing: give the width of the average, 0.05 or so")
    if "out" not in words or not {"weights", "snapshots"} & {*words}:  # places by the experiment
        config = resolve_image_set(config)
        check_profile(config)
    stored = find_stored(config, words)
    wanted = Profile(width, moment(config.sample.ema_images, stored))

    # From what
    shares = solve(stored, wanted)
    out = out_file(Path(words["out"]) if "out" in words else average_file(config))
    print(
        f"average: reading {len(shares.files)} of {shares.num_files} files, "
        f"{shares.gigabytes:,.1f} GB",
        flush=True,
    )

    # Their sum
    save_weights(out, weighted_sum(shares.files), about_of(stored, shares.last, wanted))
    print(
        f"average: width {width:g} at {wanted.images:,} images, its profile met to "
        f"{shares.mismatch:.2%}: {out}",
        flush=True,
    )


def moment(images: int | None, stored: Stored) -> int:
    """The images seen after which the average is taken: `images`, the end, or the last ones stored.

    Raises UserError if a training that is not at its end has not stored all widths yet.
    """
    if images is not None:
        return images
    if stored.final is not None:
        return stored.final.images or 0
    if (newest := stored.newest) is None:
        raise UserError(
            f"{stored.folder} holds averages of one width alone: wait until the training has "
            "stored the others"
        )
    return newest


if __name__ == "__main__":
    run_main(main)

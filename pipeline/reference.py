"""Statistics of the features of a whole pack, which every evaluation on it compares with.

    python -m pipeline.reference config=... record=RECORD.json out=FILE.npz

Streams the pack once, never mirrored, and checks on the way that it is the pack of the record.
"""

import hashlib
from pathlib import Path

import numpy as np

from pipeline.config import load_step
from pipeline.data import Pack, open_pack
from pipeline.distributed import pick_device
from pipeline.errors import UserError, run_main
from pipeline.extractors import Extractor, batches, load_extractor
from pipeline.files import read_json
from pipeline.keys import Runtime
from pipeline.layout import pack_folder, record_file, reference_file
from pipeline.scores import Moments, Reference, save_reference

WORDS = ("record", "out")


def measure(pack: Pack, extractor: Extractor, runtime: Runtime) -> Reference:
    """Moments of the features of all images, and what they depend on.

    Raises UserError where the images are not those of the pack's record.
    """
    moments = Moments(extractor.width, extractor.device)
    digest = hashlib.sha256()
    size, seconds = runtime.feature_batch, runtime.progress_seconds
    for part in batches(len(pack), size, "reference", seconds):
        images = np.ascontiguousarray(pack.images[part])
        digest.update(images.data)
        moments.update(extractor.features(images)[0])
    expected = pack.record["sha256"]["images"]
    if digest.hexdigest() != expected:
        raise UserError(
            f"the pack's images have sha256 {digest.hexdigest()[:8]}…, its record says "
            f"{expected[:8]}…: run `make data` to build the pack again"
        )
    return Reference(
        moments.mu, moments.sigma, moments.num, expected, extractor.name, extractor.weights_sha256
    )


def main(argv: list[str]) -> None:
    """Make the reference of the pack that `config` names."""
    config, own = load_step(argv, WORDS)
    record = read_json(Path(own.get("record", record_file(config))))
    out = Path(own.get("out", reference_file(config)))
    pack = open_pack(pack_folder(config), record)
    if len(pack) < 2:
        raise UserError("the pack holds one image, and a covariance needs two: use a larger pack")
    device = pick_device(config.runtime.device, 0)
    extractor = load_extractor(config.evaluate.extractor, config.evaluate.weights, device)
    save_reference(out, measure(pack, extractor, config.runtime))
    print(f"reference of {len(pack):,} images by {extractor.title}: {out}", flush=True)


if __name__ == "__main__":
    run_main(main)

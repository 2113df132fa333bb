"""Scoring: features of 100,000 images streamed at flat memory, against torch-fidelity.

The reference step runs as a command on a pack of random images, by EfficientNet-Lite0 at 96 px (on
a GPU by Inception-v3 too, if its weights are at hand), once for many images and once for a
tenth: its peak memory must not follow their number. The baseline is torch-fidelity's own
calculate_metrics with the same network on fewer images, since it holds every feature.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.bench import record
from pipeline.compute import gpus
from pipeline.compute.distributed import pick_device
from pipeline.data.pack import Hashes, Record
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.weights import load_state
from pipeline.scoring.weights_sources import read_weights

torch_fidelity: Any = load_torch_fidelity()

# Size of the task
SIZE = 32  # px
MANY, BASELINE = 100_000, 2_000  # images
CHUNK = 10_000  # images made at a time
# Networks
EXTRACTOR, INCEPTION = "efficientnet-lite0", "inception-v3-compat"


def make_pack(folder: Path, count: int) -> None:
    """A pack of random images with its record, folder/record.json."""
    # Images of noise
    pack = folder / "pack"
    pack.mkdir(parents=True)
    shape = (count, SIZE, SIZE, 3)
    images = np.lib.format.open_memmap(pack / "images.npy", "w+", np.uint8, shape)
    digest = hashlib.sha256()
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK]
        part[:] = np.random.default_rng(start).integers(0, 256, part.shape, np.uint8)
        digest.update(np.ascontiguousarray(part).data)
    images.flush()
    # Labels and records
    labels = np.zeros(count, np.int64)
    np.save(pack / "labels.npy", labels)
    hashes = Hashes(images=digest.hexdigest(), labels=hashlib.sha256(labels.data).hexdigest())
    about = Record(
        source="train", resolution=SIZE, recipe="box", num_images=count, classes=["none"],
        per_class={"none": count}, sha256=hashes,
    )  # fmt: skip
    about.write(pack / "manifest.json")
    about.write(folder / "record.json")


def reference(folder: Path, extractor: str) -> dict[str, float]:
    """Seconds and peak MB of the reference step over the pack in `folder`, all its processes."""
    # The step's command
    ranks = gpus.default_processes()
    words = [sys.executable, "-m", "pipeline.launch", "--gpus", str(ranks), "--"]
    words += ["-m", "pipeline.reference", "data.source=train", f"data.resolution={SIZE}"]
    words += [f"data.path={folder}/pack", f"record={folder}/record.json"]
    words += [f"out={folder}/{extractor}.npz", f"evaluate.extractor={extractor}"]
    # Its time and memory
    began, peak = time.monotonic(), 0.0
    run = psutil.Popen(words, stdout=subprocess.DEVNULL)
    while run.poll() is None:
        peak = max(peak, largest(run))
        time.sleep(0.2)
    if run.returncode:
        raise RuntimeError(f"the step ended with status {run.returncode}")
    return {"seconds": time.monotonic() - began, "peak_mb": peak}


def largest(run: psutil.Popen) -> float:
    """Most resident MB, without pages of files, that one process of the job has."""
    # Shared pages aside
    sizes = [0.0]
    try:
        for process in [run, *run.children(recursive=True)]:
            info = process.memory_info()
            sizes.append((info.rss - info.shared) / 1e6)
    except psutil.NoSuchProcess:
        pass
    return max(sizes)


class Images(torch.utils.data.Dataset):
    """Images of a pack as torch-fidelity takes them: uint8 (3,H,W)."""

    def __init__(self, folder: Path, count: int) -> None:
        self.images = np.load(folder / "pack/images.npy", mmap_mode="r")[:count]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[index].transpose(2, 0, 1)))


class Registered(torch_fidelity.FeatureExtractorBase):
    """The network of EXTRACTOR as one of torch-fidelity's extractors."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        kind = KINDS[name]
        file = kind.find(None)
        self.network = kind.build(kind, load_state(kind, *read_weights(file), file.path))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Features (B,D) of uint8 (B,3,H,W)."""
        return self.network(images)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers that can be asked for."""
        return KINDS[EXTRACTOR].layers


torch_fidelity.register_feature_extractor(EXTRACTOR, Registered)


def baseline(folder: Path, extractor: str) -> float:
    """Images/s of torch-fidelity's Fréchet distance of the first images to themselves."""
    # The same set twice
    images = Images(folder, BASELINE)
    began = time.monotonic()
    torch_fidelity.calculate_metrics(
        input1=images,
        input2=images,
        fid=True,
        cuda=torch.cuda.is_available(),
        feature_extractor=extractor,
        feature_layer_fid=KINDS[extractor].layers[0],
        batch_size=64,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    return 2 * BASELINE / (time.monotonic() - began)


def others_on(device: str) -> list[str]:
    """The extractor that takes too long for a CPU, on a GPU and with its weights at hand."""
    is_present = device == "cuda" and KINDS[INCEPTION].present()
    return [INCEPTION] if is_present else []


def run(rounds: int = 1) -> dict[str, Any]:
    """Images/s of both, and peaks of memory with all images and a tenth."""
    # Two sizes of pack
    device = pick_device("auto", 0)
    with tempfile.TemporaryDirectory() as name:
        many_folder, few_folder = Path(name, "many"), Path(name, "few")
        make_pack(many_folder, MANY)
        make_pack(few_folder, MANY // 10)
        # Both in turn
        peaks = {}
        values: dict[str, list[float]] = {"torch-fidelity": [], "ours": []}
        for _ in range(rounds):
            values["torch-fidelity"].append(baseline(few_folder, EXTRACTOR))
            small, large = reference(few_folder, EXTRACTOR), reference(many_folder, EXTRACTOR)
            values["ours"].append(MANY / large["seconds"])
            peaks = {f"{MANY // 10} images": small["peak_mb"], f"{MANY} images": large["peak_mb"]}
        # Other networks
        by_extractor = {name: reference(many_folder, name) for name in others_on(device.type)}
    # Against the baseline
    title = f"features of images of {SIZE} px by EfficientNet-Lite0 at 96 px, {MANY:,} streamed"
    result = record.summary(title, "images/s", values, baseline="torch-fidelity")
    grown = peaks[f"{MANY} images"] / peaks[f"{MANY // 10} images"]
    return result | {
        "processes": gpus.default_processes(),
        "seconds": large["seconds"],
        "peak_mb": peaks,
        "bars": [
            record.bar("memory with 10 x the images / with 1 x", grown, at_most=1.1),
            record.bar("MB of the largest process", peaks[f"{MANY} images"], at_most=2000),
        ],
        "other_extractors": by_extractor,
        "notes": [
            f"{MANY:,} images in {large['seconds']:.0f} s on {device}",
            *(f"{name}: {entry['seconds']:.0f} s" for name, entry in by_extractor.items()),
        ],
    }

"""Samples of a network with random weights: by batch size, device, compilation and precision."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bench.gpu_check.check import (
    NOT_COMPILED,
    Check,
    Figure,
    needs_compiler,
    needs_precision,
)
from pipeline.bench.gpu_check.inputs import CLASSES, configuration
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.config.stages import stage_keys
from pipeline.data.pack import DataAbout
from pipeline.networks import families
from pipeline.sampling import network
from pipeline.sampling.job import Job, prepare
from pipeline.training.calibration import finish
from pipeline.training.weights_file import WeightsAbout, save_weights

CPU = torch.device("cpu")
# Share of values that rounding moves to the next grey level. By convolutions that are off by 1e-5
# it is 0.0005, by TF32 0.012; with dopri5, whose steps rounding changes too, 0.005 and 0.01.
FLIPS, FLIPS_ON_A_GRID = 0.01, 0.004
MODEL = ("experiment=tiny", "model.time_scale=10")
NUM, FEW, STEPS = 256, 32, 8  # images of the largest batch, of others; steps of a fixed grid
SOLVERS = ("euler", "midpoint", "heun", "rk4", "dopri5")
# Standard deviations of weights with which state, time and class all matter to the velocity.
SPREAD = {"stem": 0.5, "time_mlp": 0.3, "label_embedding": 1.5, "out_conv": 0.3}


def random_network(words: Sequence[str] = MODEL) -> nn.Module:
    """The network of a configuration with random weights in every layer."""
    net = families.build(configuration(words).model, CLASSES)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        std = SPREAD.get(name.partition(".")[0], 0.1)
        nn.init.normal_(parameter, std=std, generator=generator)
    return net


@contextmanager
def weights(words: Sequence[str] = MODEL) -> Iterator[Path]:
    """A file of these weights, as a training leaves it."""
    config = configuration(words)
    names = [f"class {k}" for k in range(CLASSES)]
    data = DataAbout(source="shapes", resolution=8, recipe="box", classes=names, sha256=None)
    about = WeightsAbout(config=stage_keys(config, "train"), record=data.to_json(), images=1)
    with TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        save_weights(path, random_network(words).state_dict(), about)
        yield path


def job_of(path: Path, *words: str) -> Job:
    """A sampling in float32; guided, except by dopri5, whose steps are compared elsewhere."""
    common = (
        "experiment=tiny",
        "sample.precision=fp32",
        f"sample.steps={STEPS}",
        "runtime.compile=false",
    )
    guidance = "sample.guidance=1" if "sample.solver=dopri5" in words else "sample.guidance=2"
    return prepare([*common, guidance, *words, f"weights={path}", f"out={path.parent / 'out'}"])


def images(
    job: Job, device: torch.device, count: int, batch: int = NUM
) -> tuple[np.ndarray, float]:
    """The first images (count,H,W,3) as int64, in batches, and their mean evaluations."""
    networks = network.build(job, Ranks(0, 1, device))
    parts = [np.arange(k, min(k + batch, count), dtype=np.int64) for k in range(0, count, batch)]
    made = [network.sample_images(job, networks, part, device) for part in parts]
    pixels, evaluations = (np.concatenate(values) for values in zip(*made, strict=True))
    return pixels.astype(np.int64), float(evaluations.mean())


def levels(first: np.ndarray, second: np.ndarray) -> int:
    """Largest difference in grey levels, over the images that both have."""
    count = min(len(first), len(second))
    return int(np.abs(first[:count] - second[:count]).max())


def apart(first: np.ndarray, second: np.ndarray, at_most: float = FLIPS) -> Figure:
    """The share of values that differ, none of them by more than a grey level."""
    count, most = min(len(first), len(second)), levels(first, second)
    if most > 1:
        return Figure(most, 1, "grey levels")
    share = float((first[:count] != second[:count]).mean())
    return Figure(share, at_most, "of the values", note=f"{most} grey levels at most")


def batch_sizes(solver: str, device: torch.device) -> Figure:
    """The first images in batches of 1, 7 and 256."""
    with weights() as path:
        job = job_of(path, f"sample.solver={solver}")
        whole, _ = images(job, device, NUM)
        parts = [apart(images(job, device, n, b)[0], whole) for n, b in ((4, 1), (14, 7))]
    return max(parts, key=lambda figure: figure.value)


def as_on_cpu(solver: str, device: torch.device) -> Figure:
    """Images of the device and of the CPU."""
    with weights() as path:
        job = job_of(path, f"sample.solver={solver}")
        (ours, count), (right, right_count) = (images(job, d, FEW) for d in (device, CPU))
    note = f"{count:.1f} evaluations, on the CPU {right_count:.1f}"
    at_most = FLIPS if solver == "dopri5" else FLIPS_ON_A_GRID
    return apart(ours, right, at_most)._replace(note=note)


def compiled(device: torch.device) -> Figure:
    """Compiled and eager."""
    needs_compiler(device)
    with weights() as path:
        jobs = (
            job_of(path, "sample.solver=heun", f"runtime.compile={c}") for c in ("true", "false")
        )
        ours, right = (images(job, device, FEW)[0] for job in jobs)
    return apart(ours, right)


def rounded(precision: str, at_most: float, device: torch.device) -> Figure:
    """Mean difference of Heun's images from float32."""
    needs_precision(precision, device)
    with weights() as path:
        words = ("sample.solver=heun", "sample.precision=")
        right, ours = (
            images(job_of(path, words[0], words[1] + p), device, 2 * FEW)[0]
            for p in ("fp32", precision)
        )
    mean = float(np.abs(ours - right).mean())
    note = f"at most {levels(ours, right)}"
    return Figure(mean, at_most, "grey levels", 1e-9, note)


def evaluations(precision: str, at_most: float, device: torch.device) -> Figure:
    """dopri5's evaluations at a tolerance of 1e-4 over those in float32."""
    needs_precision(precision, device)
    words = ("sample.solver=dopri5", "sample.rtol=1e-4", "sample.atol=1e-4")
    with weights() as path:
        jobs = [job_of(path, *words, f"sample.precision={p}") for p in ("fp32", precision)]
        (right, needed), (ours, count) = (images(job, device, FEW) for job in jobs)
    note = f"{count:.1f} instead of {needed:.1f}, {levels(ours, right)} grey levels at most"
    return Figure(count / needed, at_most, "times", note=note)


# --- a step as a CUDA graph ----------------------------------------------------------------------


class Step:
    """A step of Euler of 64 images, which are always at the same place in memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.net = execution.place(random_network().eval(), device)
        self.start = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
        self.x, self.t = self.start.clone(), torch.zeros(64, device=device)
        self.labels = torch.arange(64, device=device) % CLASSES

    def take(self) -> Tensor:
        """The next state."""
        return self.x + self.net(self.x, self.t, self.labels) / STEPS

    def run(self, step: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """The state after STEPS steps as `step` takes them, and their seconds."""
        self.x.copy_(self.start)
        finish(self.device)
        began = monotonic()
        for k in range(STEPS):
            self.t.fill_(k / STEPS)
            self.x.copy_(step())
        finish(self.device)
        return self.x.clone(), monotonic() - began


@torch.inference_mode()
def graph(device: torch.device) -> Figure:
    """Steps of Euler, captured and replayed, against the same launched kernel by kernel."""
    # Captured once
    step = Step(device)
    for _ in range(3):  # choice of kernels, first allocations
        step.take()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = step.take()

    def replay() -> Tensor:
        captured.replay()
        return result

    # Both ways
    (ours, fast), (right, slow) = step.run(replay), step.run(step.take)
    return Figure(furthest(ours, right), 1e-5, "", note=f"{slow / fast:.1f} x as fast")


def furthest(first: Tensor, second: Tensor) -> float:
    """Largest difference of a value."""
    return float((first - second).abs().max())


FLIPPED = "rounding of 1e-5 moves one value in 2000 to the next level, with dopri5 one in 200"
CHECKS = (
    *(Check(f"batches of 1, 7 and 256, {s}", partial(batch_sizes, s), FLIPPED) for s in SOLVERS),
    *(Check(f"samples as on the CPU, {s}", partial(as_on_cpu, s), FLIPPED) for s in SOLVERS),
    Check("samples compiled and eager", compiled, FLIPPED, NOT_COMPILED),
    Check("step as a CUDA graph", graph, "the same kernels", "a CPU has no CUDA graphs"),
    Check("samples in tf32", partial(rounded, "tf32", 0.5), "rounds by 5e-4", "a CPU has no TF32"),
    Check("samples in bf16", partial(rounded, "bf16", 4.0), "rounds by 4e-3"),
    Check(
        "evaluations of dopri5 in tf32", partial(evaluations, "tf32", 1.5),
        "dopri5 takes rounding for error", "a CPU has no TF32",
    ),
    Check(
        "evaluations of dopri5 in bf16", partial(evaluations, "bf16", 4.0),
        "dopri5 takes rounding for error; bf16 needed 238 instead of 83 at 1e-5",
    ),
)  # fmt: skip

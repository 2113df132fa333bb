"""Sampling: evaluations that the solvers need, and images/s of guided sampling.

The network is that of `small`, trained for a minute. Evaluations: dopri5 with one step size for
the whole batch (torchdiffeq) against ours with one for each sample, at equal tolerances, with the
distance of each sample from the solution that it has alone; ours in lower precision too. Guidance:
one batched evaluation of both branches against two. Precision: bf16, on a GPU compiled too, against
eager float32.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bench import record
from pipeline.bench.steps import step
from pipeline.compute import draws, execution
from pipeline.compute.distributed import Ranks, pick_device
from pipeline.config.schema import Sample
from pipeline.data.pack import Record
from pipeline.sampling import network, solvers
from pipeline.sampling.dopri5 import dopri5
from pipeline.sampling.field import Field
from pipeline.sampling.job import Job, prepare

# Numbers of images
TRAINED = 25_600  # images
SOLVED, TIMED = 24, 64  # images of the comparison of solvers, and of speeds
# Tolerances of the solvers
TOLERANCES = (1e-5, 1e-3)
LOWER_TOLERANCES = (1e-5, 1e-4)  # of lower precision
PLAIN = ("sample.solver=dopri5", "sample.guidance=1", "sample.precision=fp32")
EXACT = 1e-7  # tolerance of the solutions that count as exact
STEPS = 8


def trained(folder: Path) -> list[str]:
    """Train the network of `small` on its images; words that name its weights."""
    pack = [f"data.pack_dir={folder}", "experiment=small"]
    recipe = [f"train.images={TRAINED}", "train.times=uniform"]
    step("downsample", *pack, f"out={folder}/record.json")
    step("train", *pack, f"record={folder}/record.json", f"out={folder}/train", *recipe)
    return [*pack, f"weights={folder}/train/weights.safetensors"]


class Bench:
    """A trained network on a device, and what is asked of it."""

    def __init__(self, words: list[str], device: torch.device, images: int = TIMED) -> None:
        """`images` are sampled at once if speed is measured."""
        self.words, self.device, self.images = words, device, images
        self.nets: dict[bool, nn.Module] = {}

    def job(self, *more: str) -> Job:
        """The sampling that further words ask for."""
        return prepare([*self.words, *more])

    def networks(self, job: Job) -> tuple[nn.Module, None]:
        """The network, compiled if the job's runtime says so; made once."""
        compiled = job.config.runtime.compile is True
        if compiled not in self.nets:
            self.nets[compiled] = network.build(job, Ranks(0, 1, self.device))[0]
        return self.nets[compiled], None

    def field(self, job: Job, count: int) -> tuple[Field, Tensor]:
        """Velocity field and first state of images 0 … count-1."""
        index = np.arange(count, dtype=np.int64)
        return network.start_batch(job, self.networks(job), index, self.device)

    def rate(self, job: Job, repeats: int = 3) -> float:
        """Images/s of sampling, after one round that is not timed."""
        # One round unseen
        index = np.arange(self.images, dtype=np.int64)
        networks = self.networks(job)
        network.sample_images(job, networks, index, self.device)
        # Then the timed ones
        began = time.monotonic()
        for _ in range(repeats):
            network.sample_images(job, networks, index, self.device)
        return repeats * self.images / (time.monotonic() - began)


# --- evaluations ---------------------------------------------------------------------------------


@torch.inference_mode()
def batch_wide(field: Field, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """torchdiffeq's dopri5, which has one error norm for the batch; state and evaluations."""
    from torchdiffeq import odeint

    rows = torch.arange(len(x), device=x.device)

    def velocity(t: Tensor, state: Tensor) -> Tensor:
        return field(state, t.to(state.dtype).expand(len(state)), rows)

    times = torch.tensor([0.0, 1.0], device=x.device)
    path = odeint(velocity, x, times, rtol=tolerance, atol=tolerance, method="dopri5")
    return path[-1], float(field.evaluations.double().mean())


@torch.inference_mode()
def per_sample(field: Field, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Our dopri5; state and mean evaluations."""
    done = dopri5(field, x, tolerance, tolerance)
    return done.x, float(field.evaluations.double().mean())


def alone(bench: Bench, job: Job, solve: Any, tolerance: float) -> Tensor:
    """Each image solved in a separate batch."""
    states = []
    for k in range(SOLVED):
        index = np.array([k], dtype=np.int64)
        field, x = network.start_batch(job, bench.networks(job), index, bench.device)
        states.append(solve(field, x, tolerance)[0])
    return torch.cat(states)


def furthest(a: Tensor, b: Tensor) -> float:
    """Largest difference of a value of any sample."""
    return float((a - b).abs().max())


def evaluations(bench: Bench) -> dict[str, Any]:
    """For each tolerance: mean evaluations of both, their ratio, and distances of samples."""
    # The exact solution
    job = bench.job(*PLAIN)
    exact, _ = per_sample(*bench.field(job, SOLVED), EXACT)
    results = {}
    # Both solvers, alone and together
    for tolerance in TOLERANCES:
        kinds = {"ours": per_sample, "torchdiffeq": batch_wide}
        entry: dict[str, Any] = {}
        for name, solve in kinds.items():
            x, count = solve(*bench.field(job, SOLVED), tolerance)
            entry[name] = {
                "nfe_mean": count,
                "furthest_from_alone": furthest(x, alone(bench, job, solve, tolerance)),
                "furthest_from_exact": furthest(x, exact),
            }
        entry["nfe_ratio"] = entry["ours"]["nfe_mean"] / entry["torchdiffeq"]["nfe_mean"]
        results[f"{tolerance:g}"] = entry
    return results


def by_precision(bench: Bench) -> dict[str, Any]:
    """Mean evaluations of our dopri5 in lower precision, and distances of samples."""
    # The exact solution
    exact, _ = per_sample(*bench.field(bench.job(*PLAIN), SOLVED), EXACT)
    results: dict[str, Any] = {}
    # Each precision and tolerance
    for precision in ("bf16", "tf32") if bench.device.type == "cuda" else ("bf16",):
        job = bench.job(*PLAIN[:-1], f"sample.precision={precision}")
        for tolerance in LOWER_TOLERANCES:
            field = bench.field(job, SOLVED)
            execution.set_float32(precision, bench.device)
            x, count = per_sample(*field, tolerance)
            entry = {"nfe_mean": count, "furthest_from_exact": furthest(x, exact)}
            results[f"{precision} at {tolerance:g}"] = entry
    execution.set_float32("fp32", bench.device)
    return results


# --- speed ---------------------------------------------------------------------------------------


class TwoCalls(Field):
    """Guidance by one call with the class and one without: what one batched call replaces."""

    def branches(
        self, x: Tensor, t: Tensor, labels: Tensor, chosen: slice | Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in Field, by two calls."""
        assert self.no_class is not None
        no_labels = torch.full_like(labels[chosen], self.no_class)
        strong = self.evaluate(self.net, x, t, labels)
        return strong, self.evaluate(self.net, x[chosen], t[chosen], no_labels)


@torch.inference_mode()
def two_calls(bench: Bench, job: Job, repeats: int = 3) -> float:
    """Images/s as Bench.rate, with two calls an evaluation."""
    # The same images
    field, x = bench.field(job, bench.images)
    keys: Sample = job.config.sample
    twice = TwoCalls(keys, field.net, field.labels, field.no_class)
    times = torch.linspace(0, 1, keys.steps + 1, dtype=torch.float64)
    index = torch.arange(bench.images, device=bench.device)

    def once() -> None:
        draws.normal(job.seed, draws.SAMPLE_NOISE, index, tuple(x.shape[1:]))
        twice.pixels(solvers.solve(keys.solver, twice, x, times, keys.rtol, keys.atol).x)

    # One round unseen
    once()
    began = time.monotonic()
    for _ in range(repeats):
        once()
    return repeats * bench.images / (time.monotonic() - began)


def grey_levels(bench: Bench, first: Job, second: Job) -> float:
    """Mean difference of the images of two jobs, in grey levels."""
    index = np.arange(bench.images, dtype=np.int64)
    images = [
        network.sample_images(job, bench.networks(job), index, bench.device)[0].astype(np.float64)
        for job in (first, second)
    ]
    return float(np.abs(images[0] - images[1]).mean())


def run(rounds: int = 5) -> dict[str, Any]:
    """Rates in images/s and their ratios, medians over interleaved rounds; evaluations."""
    # A trained network
    device = pick_device("auto", 0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(trained(Path(folder)), device)
        common = ("sample.solver=euler", f"sample.steps={STEPS}", "sample.guidance=2")
        plain = bench.job(*common, "sample.precision=fp32", "runtime.compile=false")
        fast = bench.job(*common, "sample.precision=bf16", f"runtime.compile={on(device)}")
        # Rates in turn
        cases = {
            "two calls": lambda: two_calls(bench, plain),
            "one batched call": lambda: bench.rate(plain),
            "one batched call, bf16": lambda: bench.rate(fast),
        }
        result = record.summary(
            f"guided sampling of {TIMED} images by {STEPS} steps, network of small",
            "images/s",
            record.interleaved(cases, rounds),
            baseline="two calls",
        )
        # What the solvers need
        solved, lower = evaluations(bench), by_precision(bench)
        differ = grey_levels(bench, plain, fast)
        trained_images = Record.read(Path(folder) / "record.json").num_images
    # Beside the rates
    extra = {
        "evaluations": solved,
        "lower_precision": lower,
        "bf16_grey_levels": differ,
        "trained_on": trained_images,
    }
    note_lines = notes(solved, lower, differ)
    return result | extra | {"bars": bars(result, solved, device), "notes": note_lines}


def on(device: torch.device) -> str:
    """Whether the fast case compiles: as sampling does on a GPU."""
    return "true" if device.type == "cuda" else "false"


def bars(result: dict[str, Any], solved: dict[str, Any], device: torch.device) -> list[Any]:
    """The promised ratios, the measured ones, and whether they hold."""
    # Evaluations and closeness
    measured = []
    for tolerance, entry in solved.items():
        title = f"evaluations at {tolerance}, ours / torchdiffeq"
        measured.append(record.bar(title, entry["nfe_ratio"], at_most=1.05))
        # a sample's neighbours move it by less than the tolerance itself does
        moved = entry["ours"]["furthest_from_alone"] / entry["ours"]["furthest_from_exact"]
        title = f"moved by the batch / by the tolerance, at {tolerance}"
        measured.append(record.bar(title, moved, at_most=0.2))
    # Speed on a GPU
    if device.type == "cuda":
        middle = result["median"]
        ratio = middle["one batched call, bf16"] / middle["one batched call"]
        measured.append(record.bar("compiled bf16 / eager float32", ratio, at_least=2.0))
    return measured


def notes(solved: dict[str, Any], lower: dict[str, Any], differ: float) -> list[str]:
    """The figures beside the bars, as lines."""
    # Lower precision
    lines = [f"bf16 moves the images by {differ:.3f} grey levels on average"]
    # Both solvers
    for tolerance, entry in solved.items():
        for name in ("ours", "torchdiffeq"):
            case = entry[name]
            lines.append(
                f"dopri5 at {tolerance}, {name}: {case['nfe_mean']:.1f} evaluations, at most "
                f"{case['furthest_from_alone']:.2g} from the solution alone and "
                f"{case['furthest_from_exact']:.2g} from that at {EXACT:g}"
            )
    for title, case in lower.items():
        lines.append(
            f"dopri5 in {title}: {case['nfe_mean']:.1f} evaluations, at most "
            f"{case['furthest_from_exact']:.2g} from the solution in fp32 at {EXACT:g}"
        )
    # Only measured on GPUs
    if not torch.cuda.is_available():
        lines.append("on a GPU (compiled bf16 at 2 x eager float32): unmeasured, there is none")
    return lines

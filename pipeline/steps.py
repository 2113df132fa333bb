"""The steps of the pipeline, one row each: its words on the command line, and how it runs.

A step is a module pipeline.NAME with `main(argv)`: it takes `key=value` words, parses and checks
them once, and writes files. One that runs as several ranks also has

    preflight(config, paths, world)   all checks that need no device, before any rank starts and
                                      before a GPU is leased; waits for another job in its folder;
                                      returns what all ranks must have in common

which the launcher calls with its own parse of the same words. A step imports no other step.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step: its name, and the words without dots (paths) that it takes beside the keys."""

    name: str
    words: tuple[str, ...]
    ranked: bool = False  # runs as several ranks, on GPUs
    like: str = ""  # the step whose runtime.gpus it takes, if it has none of its own
    loop: str = ""  # the module that its ranks import beside its own

    @property
    def module(self) -> str:
        """The module, as `python -m` takes it."""
        return f"pipeline.{self.name}"

    @property
    def imports(self) -> list[str]:
        """Modules that its ranks start with."""
        return [self.module, *([f"pipeline.{self.loop}"] if self.loop else [])]

    @property
    def gpus(self) -> str:
        """The name under runtime.gpus that says how many GPUs it takes."""
        return self.like or self.name


ALL = (
    Step("downsample", ("out",)),
    Step("fetch", ("out",)),
    Step("prepare", ("out",)),
    Step(
        "reference",
        ("record", "out", "reference", "export"),
        ranked=True,
        loop="scoring.reference_loop",
    ),
    Step("coupling", ("record", "out"), ranked=True, like="reference"),
    Step("train", ("record", "out", "checkpoints", "duals"), ranked=True, loop="training.loop"),
    Step("average", ("weights", "snapshots", "out")),
    Step(
        "select",
        ("weights", "guide", "record", "reference", "out"),
        ranked=True,
        loop="trials.select_loop",
        like="sample",
    ),
    Step(
        "solver",
        ("weights", "guide", "choice", "out", "sampler"),
        ranked=True,
        loop="sampling.solver_loop",
        like="sample",
    ),
    Step(
        "sample",
        ("weights", "guide", "choice", "solver", "seed", "out", "sampler"),
        ranked=True,
        loop="sampling.loop",
    ),
    Step(
        "evaluate",
        ("samples", "record", "reference", "out", "images", "across"),
        ranked=True,
        loop="scoring.evaluate_loop",
    ),
    Step(
        "milestones",
        (
            "training",
            "checkpoints",
            "record",
            "duals",
            "reference",
            "guide",
            "seed",
            "watch",
            "out",
        ),
        ranked=True,
        loop="trials.milestones_loop",
        like="sample",
    ),
    Step(
        "predict",
        ("weights", "record", "out"),
        ranked=True,
        loop="concept.predict_loop",
        like="sample",
    ),
    Step("score", ("predictions", "record", "out")),
    Step(
        "report",
        (
            "curve",
            "record",
            "samples",
            "metrics",
            "choice",
            "milestones",
            "duals",
            "solvers",
            "out",
        ),
    ),
)
STEPS = {step.name: step for step in ALL}
BY_MODULE = {step.module: step for step in ALL}

"""Keys of the hardware: they change how long an experiment takes, never what comes out."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import NotNegative, Positive, PositiveInt, Section


class Gpus(Section):
    train: PositiveInt
    sample: PositiveInt
    reference: PositiveInt
    evaluate: PositiveInt


class Runtime(Section):
    # The machine's share
    gpus: Gpus
    workers: PositiveInt
    start_method: Literal["forkserver", "spawn", "fork"]
    data_on_device: Literal["auto"] | bool
    # Execution
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto"] | bool
    strategy: Literal["ddp", "fsdp2"]
    # Batches that fit
    micro_batch: Literal["auto"] | PositiveInt
    sample_batch: PositiveInt
    feature_batch: PositiveInt
    # Checkpoints
    checkpoint_images: PositiveInt
    checkpoint_minutes: Positive
    keep_checkpoints: PositiveInt
    milestone_images: PositiveInt | None
    # Messages
    log_images: PositiveInt
    progress_seconds: Annotated[float, Field(ge=0)]


class Slurm(Section):
    # The queue
    partition: str | None
    account: str | None
    constraint: str | None
    # Limits of the job
    minutes: PositiveInt
    memory_gb: Positive | None
    signal_seconds: PositiveInt  # before the limit


class Launch(Section):
    # How ranks start
    launcher: Literal["standalone", "torchrun", "submitit_local", "submitit_slurm", "none"]
    # Where nodes meet
    nnodes: PositiveInt
    rdzv_endpoint: str | None  # host:port of the first node
    rdzv_id: str | None  # what the nodes of one job have in common; None: made of its keys
    join_seconds: PositiveInt  # how long nodes wait for each other
    # Network and folders
    interface: str | None  # of the network between the nodes; None: the one that leads there
    folder: str  # of submitit's jobs
    slurm: Slurm
    # Restarts and threads
    max_restarts: NotNegative
    threads: Literal["auto"] | PositiveInt

"""snakemake, with its Slurm plugin asking each second; it waits 10 s longer from time to time."""

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

EACH_SECOND = property(lambda executor: 1, lambda executor, seconds: None)
Executor.next_seconds_between_status_checks = EACH_SECOND

if __name__ == "__main__":
    main()

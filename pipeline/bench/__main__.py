"""Run benchmarks, print them, and keep their records: `make bench`, or

python -m pipeline.bench [--no-record] [NAME ...]
python -m pipeline.bench gpu-check [--device cpu] [--no-record] [NAME ...]    `make gpu-check`
python -m pipeline.bench gpu [--force] [--no-record] [PART ...]    `make bench-gpu`
"""

import argparse
import sys
from importlib import import_module

from pipeline.bench import record

# Those with options of their own
COMMANDS = {"gpu": "pipeline.bench.gpu.parts", "gpu-check": "pipeline.bench.gpu_check.command"}
NAMES = (
    "startup",
    "downsample",
    "loader",
    "train",
    "edm2",
    "sampling",
    "solvers",
    "couplings",
    "quality",
    "scoring",
    "noise",
    "seeds",
)


def main() -> None:
    """Entry point: every benchmark named, or all; or a command."""
    # A command
    if module := COMMANDS.get(" ".join(sys.argv[1:2])):
        sys.exit(import_module(module).main(sys.argv[2:]))
    # The options
    parser = argparse.ArgumentParser(prog="pipeline.bench", description="measure and record")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=str(NAMES))
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    # One after another
    for name in options.names or NAMES:
        result = import_module(f"pipeline.bench.{name}").run()
        record.show(result)
        if not options.no_record:
            print(f"record: {record.write(name, result)}", flush=True)


if __name__ == "__main__":
    main()

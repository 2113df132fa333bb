"""Run benchmarks, print them, and keep their records: `make bench`, or

python -m pipeline.bench [--no-record] [NAME ...]
"""

import argparse
from importlib import import_module

from pipeline.bench import record

NAMES = ("startup", "downsample", "loader", "train", "sampling", "scoring")


def main() -> None:
    """Entry point: every benchmark named, or all."""
    # The options
    parser = argparse.ArgumentParser(prog="pipeline.bench", description="measure and record")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=str(NAMES))
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    # One after another
    for name in options.names or NAMES:
        result = import_module(f"pipeline.bench.{name}").run()
        print(f"\n{record.table(result)}", flush=True)
        for bar in result.get("bars", []):
            print(record.bar_line(bar), flush=True)
        for note in result.get("notes", []):
            print(note, flush=True)
        if not options.no_record:
            print(f"record: {record.write(name, result)}", flush=True)


if __name__ == "__main__":
    main()

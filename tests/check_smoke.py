"""Hold the result of `make smoke`, or of EXPERIMENT=shapes, against what a working one reaches.

    python tests/check_smoke.py [smoke | shapes]

Exit status 1 if it falls short: a nearest-class-mean classifier on the real shapes must name enough
of the samples, in every class too, and the distance must lie low between its floor and its ceiling.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Bars(NamedTuple):
    """What an experiment must reach."""

    overall: float  # share of samples that show their class
    worst: float  # in every class
    height: float  # of the distance between floor and ceiling


BARS = {"smoke": Bars(0.90, 0.70, 0.25), "shapes": Bars(0.95, 0.85, 0.20)}


def failures(experiment: str, metrics: dict[str, Any]) -> list[str]:
    """What the metrics file of an experiment misses, a sentence each."""
    found, bars = [], BARS[experiment]
    accuracy = metrics["class_accuracy"]
    if accuracy["overall"] < bars.overall:
        found.append(
            f"only {accuracy['overall']:.1%} of the samples show their class ({bars.overall:.0%})"
        )
    for number, share in enumerate(accuracy["per_class"]):
        if share < bars.worst:
            found.append(f"only {share:.1%} of class {number} show their class ({bars.worst:.0%})")
    distance = next(m for m in metrics["metrics"] if m["name"].startswith("frechet"))
    bracket = distance["bracket"]
    height = (bracket["value"] - bracket["floor"]) / (bracket["ceiling"] - bracket["floor"])
    if not height < bars.height:
        found.append(
            f"the distance lies at {height:.0%} between floor and ceiling ({bars.height:.0%})"
        )
    print(
        f"{experiment}: {accuracy['overall']:.1%} of the samples show their class, the worst class "
        f"{min(accuracy['per_class']):.1%}; distance at {height:.1%} between floor and ceiling"
    )
    return found


def main() -> None:
    """Check the one metrics file of the experiment."""
    experiment = sys.argv[1] if len(sys.argv) > 1 else "smoke"
    (path,) = Path(f"results/{experiment}/shapes_16-box/metrics").glob("*-seed0.json")
    found = failures(experiment, json.loads(path.read_text()))
    print("\n".join(f"error: {sentence}" for sentence in found), file=sys.stderr, end="")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

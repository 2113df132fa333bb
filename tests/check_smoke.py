"""Hold the result of `make smoke` against what a working pipeline must reach.

Exit status 1 where it falls short: a nearest-class-mean classifier on the real shapes must name at
least 95 % of the samples, and 85 % in every class; the distance must lie in the lowest fifth
between its floor and its ceiling.
"""

import json
import sys
from pathlib import Path
from typing import Any


def failures(metrics: dict[str, Any]) -> list[str]:
    """What the metrics file of the smoke run misses, a sentence each."""
    found = []
    accuracy = metrics["class_accuracy"]
    if accuracy["overall"] < 0.95:
        found.append(f"only {accuracy['overall']:.1%} of the samples show their class (95 %)")
    for number, share in enumerate(accuracy["per_class"]):
        if share < 0.85:
            found.append(f"only {share:.1%} of class {number} show their class (85 %)")
    distance = next(m for m in metrics["metrics"] if m["name"].startswith("frechet"))
    bracket = distance["bracket"]
    height = (bracket["value"] - bracket["floor"]) / (bracket["ceiling"] - bracket["floor"])
    if not height < 0.2:
        found.append(f"the distance lies at {height:.0%} between floor and ceiling (20 %)")
    print(
        f"smoke: {accuracy['overall']:.1%} of the samples show their class, the worst class "
        f"{min(accuracy['per_class']):.1%}; distance at {height:.1%} between floor and ceiling"
    )
    return found


def main() -> None:
    """Check the one metrics file of the smoke run."""
    (path,) = Path("results/smoke/shapes_16-box/metrics").glob("*-seed0.json")
    found = failures(json.loads(path.read_text()))
    print("\n".join(f"error: {sentence}" for sentence in found), file=sys.stderr, end="")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

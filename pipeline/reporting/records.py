"""What earlier steps wrote, checked as it is read, so that nothing after it meets a surprise."""

from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.files import read_json

Entry = dict[str, Any]  # one object of a metrics file, a sample.json, a record or a curve

# What must stand in the files, and its type; float also takes whole numbers.
KEYS: dict[str, dict[str, type]] = {
    "curve": dict.fromkeys(("loss", "grad_norm", "images_per_s", "seconds"), float)
    | {"step": int, "images": int},
    "sample": {"sampler": str, "seed": int, "num": int, "nfe_mean": float, "seconds": float}
    | {"device": str, "world_size": int, "precision": str, "guidance": float},
    "evaluation": {"metrics": list, "notes": list, "protocol": dict, "sample": dict},
    "metric": {"name": str, "label": str, "value": float, "num_images": int, "better": str},
    "accuracy": {"overall": float, "per_class": list, "floor": dict},
    "real accuracy": {"overall": float},
    "bracket": {"num_images": int, "floor": float, "value": float, "ceiling": float},
}


def checked(kind: str, value: Any, where: object) -> Entry:
    """`value`, a mapping with the KEYS of its kind; raises UserError naming the first at fault."""
    entries = value if isinstance(value, dict) else {}
    for key, wanted in KEYS[kind].items():
        if not isinstance(entries.get(key), (int, float) if wanted is float else wanted):
            raise UserError(f"{where} has no valid {key!r}: run the step that makes it again")
    return entries


def read_evaluation(path: Path) -> Entry:
    """One metrics file; raises UserError where it is missing, damaged or of another program."""
    result = checked("evaluation", read_json(path), path)
    checked("sample", result["sample"], f"`sample` of {path}")
    for place, metric in enumerate(result["metrics"]):
        checked("metric", metric, f"metric {place} of {path}")
        if metric.get("bracket"):
            checked("bracket", metric["bracket"], f"the bracket of {metric['name']} in {path}")
    if result.get("class_accuracy"):
        shares = checked("accuracy", result["class_accuracy"], f"`class_accuracy` of {path}")
        checked("real accuracy", shares["floor"], f"`class_accuracy.floor` of {path}")
    return result

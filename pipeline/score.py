"""Scores of predicted sentences: a folder of predictions -> scores.json.

    python -m pipeline.score experiment=lcm_mse_smoke [predictions=FOLDER out=FILE.json]

The network is compared with two predictors that are fitted to its training documents: their mean
vector, and a ridge regression from the sentence before. All of them are measured on the same
sentences of held-out documents.
"""

import signal
import time
from pathlib import Path

from pipeline.base.errors import Stopped, run_main
from pipeline.base.imports import importing
from pipeline.concept.pack import check_record, open_documents, pack_folder
from pipeline.concept.predict_job import check_workload
from pipeline.concept.predictions import open_predictions
from pipeline.concept.score_record import Scores
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, run_folder
from pipeline.config.stages import write_config
from pipeline.steps import STEPS

STEP = STEPS["score"]


def show(result: Scores) -> None:
    """Print a line per predictor."""
    print(f"score: {result.num_targets:,} sentences of {result.num_documents:,} held-out documents")
    for name, row in result.predictors.items():
        print(
            f"{name}: squared error {row.squared_error:.4g}, cosine {row.cosine:.4f}, "
            f"retrieval {row.retrieval_accuracy:.2%}"
        )


def main(argv: list[str]) -> None:
    """Entry point: `key=value` words."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    start = time.monotonic()

    # What is compared
    config, words = load_step(argv, STEP.words)
    check_workload(config)
    documents = open_documents(config)
    if "record" in words:
        check_record(documents, pack_folder(config), Path(words["record"]))
    folder = Path(words.get("predictions", run_folder(config) / "predict"))
    predictions = open_predictions(folder)
    out = out_file(Path(words.get("out", run_folder(config) / "metrics" / "scores.json")))
    with importing():  # of torch
        from pipeline.concept.scoring import check, score
    check(config, documents, predictions, folder)

    # Scores
    write_config(out.parent, config, "score")
    result = score(config, documents, predictions)
    result = result.model_copy(update={"seconds": round(time.monotonic() - start, 1)})
    result.write(out)
    show(result)


def stop(signal_number: int, frame: object) -> None:
    """Signal handler: end the step in order."""
    raise Stopped("nothing is kept; the same command starts over")


if __name__ == "__main__":
    run_main(main)

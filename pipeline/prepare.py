"""Step prepare: documents -> a pack of sentence vectors and its normaliser.

    python -m pipeline.prepare experiment=lcm_mse_1_6b data.dir=FOLDER

Beside the pack it writes the pack's record to `out`, by default results/data/<concept.name>.json.
The folder holds Parquet files in the layout of the Large Concept Model (concept.source=parquet), or
.txt files (text), one document each. Finished files stay when a run ends in any way, and the same
command resumes after them. What is there already is not made again.
"""

import signal
from pathlib import Path

from pipeline.base.errors import Stopped, UserError, run_main
from pipeline.concept.held_out import held_out
from pipeline.concept.make import make
from pipeline.concept.pack import pack_folder
from pipeline.concept.pieces import greedy_batches, pieces
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, record_file
from pipeline.steps import STEPS

STEP = STEPS["prepare"]
LCM_BATCH = 7168  # sentences of a batch of its trainer, padding included


def prepare(argv: list[str]) -> None:
    """Make what the words name, and print what it holds. Raises UserError about any problem."""
    config, words = load_step(argv, STEP.words)
    if config.concept is None or config.workload != "concept":
        raise UserError(
            f"workload={config.workload} has no documents to prepare: give an experiment with "
            "workload=concept, such as experiment=lcm_mse_smoke"
        )
    out = out_file(Path(words.get("out", record_file(config))))
    documents = make(config)
    record, most = documents.record, config.concept.max_sentences
    parts = pieces(documents.offsets, most)
    scored = int(held_out(record.num_documents, config.concept.held_out).sum())
    print(
        f"prepare: {record.num_sentences:,} sentences of {record.num_documents:,} documents, "
        f"{len(parts.starts):,} pieces of 2 to {most}, {scored:,} documents held out for scores: "
        f"{pack_folder(config)}"
    )
    if documents.prompts is not None:
        in_prompts = int(documents.prompts.sum())
        print(f"prepare: {in_prompts:,} of the sentences are in prompts, and never predicted")
    if batches := greedy_batches(parts.lengths, LCM_BATCH):
        num = sum(map(len, batches)) / len(batches)
        print(f"prepare: {LCM_BATCH:,} sentences, padding included, are {num:.1f} pieces")
    record.write(out)


def stop(signal_number: int, frame: object) -> None:
    """Signal handler: end the step in order."""
    raise Stopped("finished files are kept; the same command resumes after them")


def main(argv: list[str]) -> None:
    """Entry point: `key=value` words."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    prepare(argv)


if __name__ == "__main__":
    run_main(main)

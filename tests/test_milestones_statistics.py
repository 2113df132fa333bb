"""Milestones against statistics of another program, which do not say of how many images."""

from pathlib import Path

from pipeline import milestones
from pipeline.reporting.milestones import read_milestones
from pipeline.scoring.references import export_reference, load_reference
from tests.test_milestones import LAST, World, world

__all__ = ["world"]  # fixture


def test_statistics_that_name_no_number_of_images(world: World) -> None:
    run, out, theirs = world.train("plain"), world.root / "theirs", world.root / "theirs.npz"
    export_reference(theirs, load_reference(world.root / "reference.npz"))
    words = [w for w in world.words(run, out) if not w.startswith("reference=")]
    milestones.main([*words, f"reference={theirs}"])
    assert [row.images for row in read_milestones(Path(out) / "curve.jsonl")] == [LAST]
    assert (Path(out) / "curve.png").exists()

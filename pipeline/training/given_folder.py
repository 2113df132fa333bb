"""A folder of checkpoints that a person has named: `checkpoints=FOLDER`."""

from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.paths import out_folder

SHOWN = 5  # sub-folders in a message


def check_given(folder: Path) -> None:
    """Raise UserError unless `folder` holds checkpoints, belongs to a run without any yet, or is
    absent: a new run may begin there.
    """
    if folder.is_file():
        raise UserError(
            f"checkpoints={folder} is a file: give the folder that holds it, {folder.parent}"
        )
    out_folder(folder, "checkpoints")
    if not folder.exists() or holds_checkpoint(folder):
        return
    below = sorted({path.parent for path in folder.rglob("step-*.pt")})
    if below:
        names = ", ".join(map(str, below[:SHOWN])) + (", …" if below[SHOWN:] else "")
        raise UserError(
            f"checkpoints={folder} holds no checkpoint itself, but these folders do: {names}: "
            "give one of them"
        )
    if not (folder / "lock").exists():  # which every run leaves
        raise UserError(
            f"checkpoints={folder} holds no checkpoint: give a folder that does, or for a new run "
            "one that does not exist yet"
        )
    print(f"train: {folder} holds no checkpoint yet: starting at step 0", flush=True)


def holds_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint lies in `folder` itself."""
    return next(folder.glob("step-*.pt"), None) is not None

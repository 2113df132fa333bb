"""A user who does not own the files of a folder, in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def another_user(folder: Path, private: bool) -> Iterator[None]:
    """Whoever works in the block may not write in `folder`; nor read there, if it is `private`.

    Root becomes another user for that time, since no mode keeps root out; others give up their own
    rights. Paths must be relative to the current folder, since those above it may be private.
    """
    # The modes of all files, with those above
    root = os.geteuid() == 0
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in reversed(paths):
        path.chmod(mode(path, private, root))
    try:
        if root:
            os.setresuid(NOBODY, NOBODY, 0)
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for path in paths:
            path.chmod(modes[path])


def mode(path: Path, private: bool, root: bool) -> int:
    """The mode of a file whose owner is root, or gives up what others do not have either."""
    if private:
        return 0o700 if root else 0
    whole = 0o755 if path.is_dir() else 0o644
    return whole if root else whole & 0o555

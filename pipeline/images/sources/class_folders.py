"""The class folders of an archive, known while its members are read one after the other."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.formats import is_hidden, is_image
from pipeline.images.sources.base import check_beside_classes, check_classes
from pipeline.images.walk import Ignored

OF_MACOS = "__MACOSX"  # a folder that its zips carry, with no images


class ClassFolders:
    """Folders side by side in an archive, each a class, and what else lies there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ignored = Ignored()
        self.counts: Counter[PurePosixPath] = Counter()  # images by folder

    def image(self, name: str, is_folder: bool, head: Callable[[], bytes]) -> str | None:
        """Count a member; <class>/<file> if it is an image, else None.

        `head` reads the first bytes of a file. Raises UserError for an image that is in no class
        folder, or in one that does not lie beside those so far.
        """
        path = PurePosixPath(name)
        if any(map(is_hidden, path.parts)) or OF_MACOS in path.parts[:1]:
            if not is_folder:
                self.ignored.add(name, b"")
        elif is_folder:
            self.counts.update({path: 0} if path.name else {})  # "./" is the archive itself
        elif is_image(name):
            self.counts[self.class_folder(path)] += 1
            return f"{path.parent.name}/{path.name}"
        else:
            check_beside_classes(self.place, [name])
            self.ignored.add(name, head())
        return None

    def class_folder(self, path: PurePosixPath) -> PurePosixPath:
        """The folder of an image, which its class is named for; raises UserError likewise."""
        # Named by its folder
        folder = path.parent
        if folder.name in ("", self.place.name.partition(".")[0]):
            check_beside_classes(self.place, [str(path)])
        # Side by side only
        if not self.counts[folder]:
            filled = (other for other, num in self.counts.items() if num)
            elsewhere = next((f for f in filled if f.parent != folder.parent), None)
            if elsewhere:
                raise UserError(
                    f"{self.place} holds images in {elsewhere} and in {folder}, which do not lie "
                    "side by side: pack nothing but one tree of class folders"
                )
        return folder

    def classes(self) -> list[str]:
        """The sorted classes, once all members are counted; raises UserError if one is empty.

        Folders that lie beside those with images are classes too.
        """
        tops = {folder.parent for folder, num in self.counts.items() if num}
        beside = [folder for folder in self.counts if folder.parent in tops]
        return check_classes(self.place, {folder.name: self.counts[folder] for folder in beside})

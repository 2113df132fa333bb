"""Documents -> a pack and its normaliser: what is not there yet is made."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.files import remove_spent
from pipeline.base.json_objects import mapping_at
from pipeline.base.locks import locked, wait_until_free
from pipeline.base.progress import Progress
from pipeline.concept import made, parquet, text
from pipeline.concept.fitting import check_given, given_normaliser, make_normaliser
from pipeline.concept.pack import (
    Documents,
    Manifest,
    normaliser_file,
    open_documents,
    pack_folder,
    read_arrays,
)
from pipeline.concept.spool import Document, Spool, move_into_place
from pipeline.concept.suffixes import Suffixes, ended, suffixes_of
from pipeline.config.concept_keys import Concept
from pipeline.config.older_form import LATER
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.data.pack import Listing
from pipeline.images.sources.changes import listing_changes

PACKAGES = {"parquet": "pyarrow", "text": text.PACKAGE, "made": "numpy"}  # that vectors depend on


class Source(NamedTuple):
    """Files of documents, and how to read the vectors of one; no folder: they are made."""

    root: Path | None
    files: list[Path]
    read: Callable[[Path], Iterator[Document]]


def make(config: Config) -> Documents:
    """The pack and the normaliser that the keys name, made if they are not there yet."""
    assert config.concept is not None
    folder = pack_folder(config)
    file = normaliser_file(folder, config.concept.scale)
    is_there = file.exists() and file.with_suffix(".json").exists()
    given = given_normaliser(config, is_there)
    if not is_whole(folder, config):
        make_pack(folder, config)
    if not is_there:
        make_normaliser(folder, config.concept.scale, given)
    elif given is not None:
        check_given(file, given, config)
    return open_documents(config)


def is_whole(folder: Path, config: Config) -> bool:
    """Whether a pack lies in a folder.

    Raises UserError if it was made by other keys, or of other documents than those at hand.
    """
    making = folder / ".making"
    if (making / "manifest.json").exists():  # a run was killed while it moved the pack, or moves it
        wait_until_free(making)
        with locked(making):
            move_into_place(making, folder)
    if not (folder / "manifest.json").exists():
        return False
    manifest = Manifest.read(folder / "manifest.json")
    read_arrays(folder, manifest)
    differ = other_keys(manifest, config)
    if differ:
        raise UserError(
            f"pack {folder} was made by other keys ({', '.join(f'concept.{k}' for k in differ)}): "
            "give another concept.name, or delete it"
        )
    check_same_documents(folder, manifest, config)
    return True


def other_keys(manifest: Manifest, config: Config) -> list[str]:
    """The keys of `concept` by which a pack was made otherwise than they say."""
    assert config.concept is not None
    before, now = (LATER["concept"] | keys for keys in (manifest.config, pack_keys(config)))
    differ = [key for key in now if before.get(key) != now[key]]
    hashes = suffixes_of(config.concept).hashes
    for key in ("suffix", "prompt_suffix"):
        if getattr(manifest, f"{key}_sha256") != hashes.get(key):
            differ.append(key)
    return differ


def check_same_documents(folder: Path, manifest: Manifest, config: Config) -> None:
    """Raise UserError if the documents at hand are others than those that a pack was made of.

    Without any at hand nothing is compared, nor with packs of earlier versions. Files are listed,
    not read: one that was replaced by another of the same name and size goes unnoticed.
    """
    root, before = config.data.dir, manifest.listing
    if before is None or root is None or not Path(root).is_dir():
        return
    now = listing_of(before.kind, Path(root), files_of(config))
    if changes := listing_changes(before, now):
        raise UserError(
            f"pack {folder} was made of other documents than those in {root} "
            f"({'; '.join(changes)}): give another concept.name for a pack of these, delete it to "
            "make it again, or point data.dir at the documents that it was made of"
        )


def listed(source: Source, kind: str) -> Listing | None:
    """The listing of a source; None of documents that are made."""
    return None if source.root is None else listing_of(kind, source.root, source.files)


def listing_of(kind: str, root: Path, files: Iterable[Path]) -> Listing:
    """A cheap listing of files of documents: names and sizes, no bytes of them."""
    names, sizes = hashlib.sha256(), []
    for file in files:
        names.update(name_of(file, root).encode("utf-8", "surrogateescape") + b"\0")
        sizes.append(size_of(file))
    return Listing(kind=kind, num_files=len(sizes), num_bytes=sum(sizes), names=names.hexdigest())


def pack_keys(config: Config) -> dict[str, object]:
    """The keys of `concept` that the vectors of a pack depend on."""
    return dict(mapping_at(stage_keys(config, "prepare"), "concept"))


# --- the vectors ---------------------------------------------------------------------------------


def make_pack(folder: Path, config: Config) -> None:
    """Write the vectors of all documents, and what is known of them, the manifest last."""
    # All that can fail at once
    assert config.concept is not None
    keys, suffixes = config.concept, suffixes_of(config.concept)
    source = open_source(config)
    names = [name_of(file, source.root) for file in source.files]
    header: dict[str, Any] = {
        "keys": pack_keys(config),
        **suffixes.hashes,
        "files": {name: size_of(f) for name, f in zip(names, source.files, strict=True)},
        "versions": versions(keys),
        "texts": True,  # packs in the making of earlier versions begin anew
    }

    # Vectors, file by file
    making = folder / ".making"
    wait_until_free(making)
    with locked(making):
        if (folder / "manifest.json").exists():  # another process has made it meanwhile
            remove_spent(making)
            return
        spool = Spool(making, keys.dimension, header)
        num_before, seconds = spool.num_sentences, config.runtime.progress_seconds
        progress = Progress("prepare", None, seconds, num_before, unit="sentences")
        for name, file in zip(names, source.files, strict=True):
            if name not in spool.finished:
                spool.add(name, ended(source.read(file), suffixes))
            if progress.due():
                progress.show(spool.num_sentences)
        offsets, hashes = spool.arrays(names)
        if offsets[-1] == 0:
            raise UserError(f"{source.root} holds no sentence: give another data.dir")

        # What is known of them
        Manifest(
            name=keys.name,
            dimension=keys.dimension,
            num_documents=len(offsets) - 1,
            num_sentences=int(offsets[-1]),
            has_suffix=suffixes.document is not None,
            sha256=hashes,
            config=header["keys"],
            suffix_sha256=header["suffix"],
            **of_prompts(suffixes),
            versions=header["versions"],
            listing=listed(source, keys.source),
        ).write(making / "manifest.json")
        move_into_place(making, folder)


def of_prompts(suffixes: Suffixes) -> dict[str, Any]:
    """What a manifest says of the suffix of prompts: nothing if there is none."""
    if suffixes.prompt is None:
        return {}
    digest = suffixes.hashes["prompt_suffix"]
    return {"has_prompt_suffix": True, "prompt_suffix_sha256": digest}


def open_source(config: Config) -> Source:
    """The documents that concept.source and data.dir name; raises UserError if there are none."""
    keys = config.concept
    assert keys is not None
    if keys.source == "made":
        documents = made.pairs if keys.pairs else made.documents
        return Source(None, [Path("made")], lambda _: documents(keys.dimension))

    # A folder of files
    if config.data.dir is None or not Path(config.data.dir).is_dir():
        raise UserError(
            f"data.dir={config.data.dir} is not a folder: give the one that holds the documents"
        )
    if keys.source == "text" and keys.dimension != text.DIMENSION:
        raise UserError(
            f"concept.dimension={keys.dimension} is not what the encoder of concept.source=text "
            f"gives: give {text.DIMENSION}"
        )
    root, files = Path(config.data.dir), files_of(config)
    if keys.source == "parquet":
        return Source(root, files, lambda file: parquet.documents(file, keys))
    encode = text.encoder()
    return Source(root, files, lambda file: text.documents(file, encode, keys.pairs))


def files_of(config: Config) -> list[Path]:
    """The files of documents in the folder data.dir; raises UserError if there are none."""
    keys, root = config.concept, Path(config.data.dir or "")
    assert keys is not None
    return parquet.files(root, keys) if keys.source == "parquet" else text.files(root)


def name_of(file: Path, root: Path | None) -> str:
    """The name of a file within its data set."""
    return str(file if root is None else file.relative_to(root))


def size_of(file: Path) -> int:
    """Bytes of a file; 0 of documents that are made."""
    return file.stat().st_size if file.exists() else 0


def versions(keys: Concept) -> Mapping[str, str]:
    """The version of the package that the vectors depend on."""
    name = PACKAGES[keys.source]
    try:
        return {name: version(name)}
    except PackageNotFoundError:  # imported from a plain folder
        return {name: "unknown"}

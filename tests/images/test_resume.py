"""Step downsample, ended in every way: what is finished stays, and the bytes are the same."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline import downsample as step
from pipeline.base.errors import UserError
from pipeline.base.locks import locked
from pipeline.images import assemble, decode, workers
from pipeline.images.sources.folders import open_folders
from pipeline.images.spool import Spool
from tests import image_sets
from tests.conftest import resolved
from tests.test_downsample import MAKING, PACK, make, one_sentence, pack_of, start, words

IMAGES = 7 * 80  # of `many`


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Seven classes of 80 photographs under real synsets' names, as a tree."""
    image_sets.write_synset_photos(tmp_path, per_class=80)
    return tmp_path


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The arrays of a pack, and its manifest without what tells packagings apart."""
    arrays = {name: (folder / name).read_bytes() for name in PACK - {"manifest.json"}}
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("kind", "ignored", "config", "listing"):
        del manifest[key]
    return arrays | {"manifest": json.dumps(manifest, sort_keys=True).encode()}


WRITERS = {
    "folders": lambda root: None,
    "folders.tar": image_sets.write_folders_tar,
    "folders.zip": image_sets.write_folders_zip,
    "hub": image_sets.write_hub,
    "tar": image_sets.write_tar_of_tars,
    "tar.gz": image_sets.write_gzipped,
    "parquet": lambda root: image_sets.write_parquet(root, shards=2, row_group=25),
    "webdataset": lambda root: write_webdataset(root),
}


def write_webdataset(root: Path) -> None:
    """Eight shards with images, and one without."""
    image_sets.write_webdataset(root, shards=8)
    image_sets.write_empty_shard(root, 8)


QUICK = ("tar.gz", "folders.zip")  # read in one go
KILLED_TWICE = ("folders", "tar", "parquet", "webdataset", "hub")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pack of the images of `many` from a tree, by a run that nothing ended."""
    root = tmp_path_factory.mktemp("once")
    image_sets.write_synset_photos(root, per_class=80)
    make(root, "data.layout=folders", f"data.pack_dir={root}/once")
    return bytes_of(root / "once/train_8/box")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in WRITERS],
)
def test_every_source_gives_the_same_pack_killed_or_not(
    many: Path, once: dict[str, bytes], kind: str
) -> None:
    WRITERS[kind](many)
    source = "train_blurred" if kind == "tar.gz" else "train"
    chosen = (f"data.source={source}", f"data.layout={kind}", f"data.pack_dir={many}/packs")
    folder = many / f"packs/{source}_8/box"
    kill_and_resume(many, folder, kind, chosen)
    found = bytes_of(folder)
    found["manifest"] = found["manifest"].replace(b"train_blurred", b"train")
    assert found == once
    assert {p.name for p in folder.iterdir()} == PACK


def kill_and_resume(root: Path, folder: Path, kind: str, chosen: tuple[str, ...]) -> None:
    """Make the pack of `folder`, killed once or twice on the way."""
    done = 0
    for lines in (1, 2) if kind in KILLED_TWICE else (1,):
        before, done = done, kill_when(root, folder, chosen, lines)
        assert before < done < IMAGES
    run = start(root, *chosen)
    output, error = run.communicate(timeout=600)
    assert run.returncode == 0, error
    assert f"resumed after {done} images" in output


# Where the images lie, and where the same lie in class folders
TREES = {
    "adm": (image_sets.write_adm, lambda root: root, "box"),
    "edm": (image_sets.write_edm, image_sets.edm_as_folders, "as_is"),
    "edm, unpacked": (
        lambda root: image_sets.write_edm(root, packed=False),
        image_sets.edm_as_folders,
        "as_is",
    ),
    "flat": (image_sets.write_flat, image_sets.flat_as_folders, "box"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in TREES])
def test_every_tree_gives_the_same_pack_killed_or_not(many: Path, name: str) -> None:
    write, as_folders, recipe = TREES[name]
    place = write(many)  # type: ignore[operator]
    words = (f"data.dir={as_folders(many)}", f"data.recipe={recipe}")  # type: ignore[operator]
    make(many, *words, "data.layout=folders", f"data.pack_dir={many}/once")
    folder = many / f"packs/train_8/{recipe}"
    kind = name.partition(",")[0]
    kill_and_resume(many, folder, kind, (f"data.dir={place}", f"data.recipe={recipe}"))
    assert json.loads((folder / "manifest.json").read_text())["kind"] == kind
    found, expected = bytes_of(folder), bytes_of(many / f"once/train_8/{recipe}")
    if kind == "edm":  # known to be resized, which the folders are told of
        found["manifest"] = found["manifest"].replace(b'"resized": false', b'"resized": true')
    assert found == expected
    assert {p.name for p in folder.iterdir()} == PACK


def kill_when(root: Path, folder: Path, chosen: tuple[str, ...], lines: int) -> int:
    """Start the step, SIGKILL it when its journal has so many lines more; images in the journal."""
    journal = folder / ".making/journal.jsonl"
    before = len(journal.read_text().splitlines()) if journal.exists() else 0
    run = start(root, *chosen)
    deadline = time.monotonic() + 600
    while not journal.exists() or len(journal.read_text().splitlines()) < before + lines:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate(timeout=600)
    _, alive = psutil.wait_procs(children, timeout=600)
    assert not alive
    whole = [line for line in journal.read_text().splitlines(True) if line.endswith("\n")]
    return sum(len(json.loads(line)["names"]) for line in whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_finished(many: Path, number: int) -> None:
    expected = make(many, f"data.pack_dir={many}/once")
    run = start(many)
    assert run.stdout is not None
    assert "listing" in run.stdout.readline()
    assert f" of {IMAGES} images" in run.stdout.readline()
    run.send_signal(number)
    error = run.communicate(timeout=600)[1]  # returns when the workers have ended too
    assert run.returncode == 75 and error.startswith("stopped: ") and error.count("\n") == 1
    assert {p.name for p in (pack_of(many) / ".making").iterdir()} <= MAKING
    assert make(many)[0] == expected[0]
    assert {p.name for p in pack_of(many).iterdir()} == PACK


# --- what a finished stretch depends on -----------------------------------------------------------


def journal_of(root: Path) -> list[dict]:
    lines = (pack_of(root) / ".making/journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def interrupt(root: Path, *more: str) -> None:
    """Leave a spool in which all is finished and nothing moved: a class has unreadable images."""
    with pytest.raises(UserError, match="unreadable"):
        make(root, *more)


@pytest.fixture
def spoiled(many: Path) -> Path:
    """`many` with one unreadable image, and a first run that refused it."""
    (first,) = sorted((many / "train").iterdir())[:1]
    self = sorted(first.iterdir())[7]
    (many / "good").write_bytes(self.read_bytes())
    self.write_bytes(b"no image")
    interrupt(many)
    return many


def bad_file(root: Path) -> Path:
    return sorted(sorted((root / "train").iterdir())[0].iterdir())[7]


def test_a_mended_image_is_decoded_again(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_file(spoiled).write_bytes((spoiled / "good").read_bytes())
    again = make(spoiled)
    assert f"resumed after {IMAGES - 80} images" in capsys.readouterr().out
    fresh = make(spoiled, f"data.pack_dir={spoiled}/fresh")
    assert (again[1], again[0]) == (pytest.approx(fresh[1], abs=0), fresh[0])


def test_leaving_out_goes_on_too(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, images, _, manifest = make(spoiled, "downsample.allow_bad=1")
    assert f"resumed after {IMAGES - 80} images" in capsys.readouterr().out
    assert len(images) == IMAGES - 1 and len(manifest["left_out"]) == 1
    assert not (images == 0).all((1, 2, 3)).any()  # the blank row is gone


def test_changed_rows_are_noticed(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_file(spoiled).write_bytes((spoiled / "good").read_bytes())
    rows = pack_of(spoiled) / ".making/rows.npy"
    content = bytearray(rows.read_bytes())
    content[-5] ^= 1  # in the last class
    rows.write_bytes(content)
    again = make(spoiled)
    assert f"resumed after {IMAGES - 160} images" in capsys.readouterr().out
    assert again[0] == make(spoiled, f"data.pack_dir={spoiled}/fresh")[0]


def test_new_images_are_noticed(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = sorted((spoiled / "train").iterdir())[2]
    Image.new("RGB", (9, 9)).save(third / "another.JPEG")
    bad_file(spoiled).write_bytes((spoiled / "good").read_bytes())
    again = make(spoiled)
    # the classes after it have other places now
    assert "resumed after 80 images" in capsys.readouterr().out
    assert again[0] == make(spoiled, f"data.pack_dir={spoiled}/fresh")[0]


def test_other_libraries_start_anew(
    spoiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_file(spoiled).write_bytes((spoiled / "good").read_bytes())
    monkeypatch.setattr(decode, "version", lambda name: "0.0")
    make(spoiled)
    out = capsys.readouterr().out
    assert "starting anew" in out and "resumed" not in out


def test_a_torn_journal_line_is_taken_off(spoiled: Path) -> None:
    bad_file(spoiled).write_bytes((spoiled / "good").read_bytes())
    journal = pack_of(spoiled) / ".making/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert make(spoiled)[0] == make(spoiled, f"data.pack_dir={spoiled}/fresh")[0]


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_killed_while_moving_into_place(
    many: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(many, f"data.pack_dir={many}/once")
    replace, count = Path.replace, 0

    def replace_some(self: Path, target: Path) -> Path:
        nonlocal count
        if self.parent.name == ".making" and not self.name.startswith("."):
            if count == moved:
                raise KeyboardInterrupt
            count += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_some)
        if moved < 3:
            with pytest.raises(KeyboardInterrupt):
                make(many)
        else:
            make(many)
    (many / "train").rename(many / "gone")  # the images are not needed any more
    again = make(many)
    assert again[0] == expected[0] and (again[1] == expected[1]).all()
    assert {p.name for p in pack_of(many).iterdir()} == PACK


# --- disks, workers, sources that go --------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile(many: Path, small_disk: Path) -> None:
    """560 images of 24 x 24 px fit, but not beside another file that comes while they are made."""
    place = (f"data.pack_dir={small_disk}", "data.resolution=24")
    other = small_disk / "other"
    run = start(many, *place)
    assert run.stdout is not None and "listing" in run.stdout.readline()
    while not (small_disk / "train_24/box/.making/journal.jsonl").exists():
        time.sleep(0.001)
    subprocess.run(["dd", "if=/dev/zero", f"of={other}", "bs=64k"], capture_output=True)
    error = run.communicate(timeout=600)[1]
    assert run.returncode == 2 and one_sentence(error), error
    assert "no space left on the disk" in error
    other.unlink()
    record = many / "record.json"
    step.downsample(resolved(*words(many, *place)), record)
    step.downsample(resolved(*words(many, "data.resolution=24")), many / "fresh.json")
    assert record.read_bytes() == (many / "fresh.json").read_bytes()


def test_a_killed_worker_is_an_error_and_the_next_run_goes_on(many: Path) -> None:
    run = start(many)
    journal = pack_of(many) / ".making/journal.jsonl"
    while not journal.exists() or not journal.stat().st_size:
        time.sleep(0.001)
    for server in psutil.Process(run.pid).children():
        for worker in server.children():
            worker.kill()
    error = run.communicate(timeout=600)[1]
    assert run.returncode == 2 and one_sentence(error) and "was killed" in error
    assert make(many)[0]["num_images"] == IMAGES


@pytest.mark.slow
def test_a_source_that_vanishes(many: Path) -> None:
    image_sets.write_tar_of_tars(many)
    run = start(many, "data.layout=tar")
    journal = pack_of(many) / ".making/journal.jsonl"
    while not journal.exists() or not journal.stat().st_size:
        time.sleep(0.001)
    tar = many / "ILSVRC2012_img_train.tar"
    tar.rename(many / "away")
    error = run.communicate(timeout=600)[1]
    assert run.returncode == 2 and one_sentence(error)
    assert f"{tar} has vanished" in error or f"{tar} cannot be read on" in error
    (many / "away").rename(tar)
    again = make(many, "data.layout=tar")
    assert again[0] == make(many, "data.layout=folders", f"data.pack_dir={many}/fresh")[0]


@pytest.mark.slow
def test_two_at_once_make_one_pack(many: Path) -> None:
    runs = [start(many) for _ in range(2)]
    outputs = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert {p.name for p in pack_of(many).iterdir()} == PACK


@pytest.mark.slow
def test_a_second_run_names_the_holder(many: Path) -> None:
    with locked(pack_of(many) / ".making"):
        run = start(many)
        assert run.stdout is not None
        lines = [run.stdout.readline() for _ in range(2)]
    assert f"in use by process {os.getpid()}" in lines[1]
    assert run.communicate(timeout=600) and run.returncode == 0


# --- memory ------------------------------------------------------------------------------------


def test_batches_are_taken_a_few_ahead_only(many: Path, tmp_path: Path) -> None:
    source = open_folders(many / "train")
    taken = 0

    def batches() -> object:
        nonlocal taken
        for stretch in source.stretches():
            for batch in workers.split(stretch, 0, 2):
                taken += 1
                yield batch

    rows = tmp_path / "rows"
    rows.touch()
    decoding = workers.decode_all(batches(), workers.PackFormat("box", 8), rows, 2)
    next(decoding)
    assert taken <= 2 * workers.AHEAD
    decoding.close()


def test_the_order_of_rows_is_by_class_then_file() -> None:
    """Not by the joined names: "a-b" comes after "a", though "-" comes before "/"."""
    names = ["a-b/1", "a/2", "a/10", "b/0", "a/1"]
    pairs = [name.split("/") for name in names]
    images = assemble.Finished(
        np.array([c.encode() for c, _ in pairs]),
        np.array([f.encode() for _, f in pairs]),
        np.array([True, True, True, False, True]),
    )
    assert [names[k] for k in assemble.pack_order(images)] == ["a/1", "a/10", "a/2", "a-b/1"]


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    try:
        Image.new("RGB", (9, 9)).save(os.fsdecode(bytes(folder) + b"/\xff\xfe.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert make(tmp_path)[0]["num_images"] == 1


def test_a_spool_is_emptied_where_its_rows_depend_on_something_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 8, {"recipe": "box"})
    spool.close()
    (tmp_path / "rows.npy").write_bytes(b"rows")
    Spool(tmp_path, 8, {"recipe": "box"}).close()
    assert (tmp_path / "rows.npy").read_bytes() == b"rows"
    Spool(tmp_path, 8, {"recipe": "adm"}).close()
    assert (tmp_path / "rows.npy").read_bytes() == b""

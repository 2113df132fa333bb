"""Pairs of noise and images: the cheapest ones, and the same however a step is shared out."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json
from pipeline.config.schema import Config
from pipeline.data.pack import open_pack
from pipeline.data.reader import Mapped
from pipeline.flow import coupling
from pipeline.flow.workload import Batch, FlowMatching, draw
from pipeline.training.identity import identity, identity_keys
from pipeline.training.trainer import share
from tests.conftest import resolved, write_pack

BATCH, GROUP = 12, 4


def sets(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(count, 3, 4, 4, generator=generator)
    return x0, torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1


def costs(x0: torch.Tensor, x1: torch.Tensor) -> np.ndarray:
    """Squared distance of each image (rows) to each noise."""
    return cdist(x1.flatten(1).double(), x0.flatten(1).double(), "sqeuclidean")


@given(seed=st.integers(0, 2**31), count=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_no_other_pairing_is_cheaper(seed: int, count: int) -> None:
    x0, x1 = sets(seed, count)
    cost, rows = costs(x0, x1), np.arange(count)
    least = min(cost[rows, list(order)].sum() for order in permutations(range(count)))
    order = coupling.assign(x0, x1)
    assert sorted(order) == list(rows)
    assert cost[rows, order].sum() == pytest.approx(least, rel=1e-7)


@given(seed=st.integers(0, 2**31), size=st.sampled_from([1, 2, 8, 32]))
@settings(max_examples=20, deadline=None)
def test_groups_are_solved_apart_and_never_cost_more(seed: int, size: int) -> None:
    x0, x1 = sets(seed, 32)
    cost, rows = costs(x0, x1), np.arange(32)
    order = coupling.assign_within(x0, x1, rows // size)
    assert sorted(order) == list(rows)
    assert np.array_equal(order // size, rows // size)
    assert cost[rows, order].sum() <= cost.trace() + 1e-9


def test_noise_near_its_image_finds_it() -> None:
    _, x1 = sets(0, 16)
    order = torch.randperm(16)
    x0 = x1[order] + 0.01 * torch.randn_like(x1)
    assert np.array_equal(order.numpy()[coupling.assign(x0, x1)], np.arange(16))


def test_equal_images_are_told_apart_by_their_place_alone() -> None:
    """Whatever the last bits of the sums: 3 equal images get their 3 noises in one fixed order."""
    x0, x1 = sets(1, 6)
    x1[2] = x1[4] = x1[0]
    exact = coupling.assign(x0, x1)
    for scale in (1e-13, -1e-13):
        off = x1.double() * (1 + scale * torch.randn(x1.shape, dtype=torch.float64))
        assert np.array_equal(coupling.assign(x0.double(), off), exact)


def test_whole_groups() -> None:
    positions = np.array([7, 8, 13])
    assert coupling.whole_groups(positions, 4).tolist() == [
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        *range(12, 16),
    ]
    assert coupling.whole_groups(positions, 1).tolist() == positions.tolist()


# --- in a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    folder = tmp_path_factory.mktemp("pack")
    record = write_pack(folder, num=30, size=8, classes=2)
    return Mapped(open_pack(folder, record), 0, torch.device("cpu"))


def config(*words: str) -> Config:
    return resolved(
        "experiment=tiny",
        f"train.batch={BATCH}",
        "train.flip=true",
        f"train.coupling_images={GROUP}",
        *words,
    )


TRANSPORT = config("train.coupling=optimal_transport")


def step(reader: Mapped, settings: Config, number: int, micro: int, world: int) -> list[Batch]:
    """All micro-batches of step `number`, in the order of their positions."""
    first, passes = number * BATCH, BATCH // (micro * world)
    shares = [share(first, k, r, world, micro) for k in range(passes) for r in range(world)]
    return [draw(reader, settings, positions) for positions in shares]


def joined(batches: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


SHARES = [(m, w) for w in (1, 2, 3) for m in (1, 2, 3, 4, 6, 12) if BATCH % (m * w) == 0]


@pytest.mark.parametrize(("micro", "world"), SHARES)
def test_pairs_do_not_know_how_a_step_is_shared_out(reader: Mapped, micro: int, world: int) -> None:
    for number in (0, 2):  # step 2 crosses into the second epoch
        whole = step(reader, TRANSPORT, number, BATCH, 1)
        parts = step(reader, TRANSPORT, number, micro, world)
        for name in ("x0", "x1", "t", "labels"):
            assert torch.equal(joined(parts, name), joined(whole, name)), name


ONE_CLASS = config("train.coupling=optimal_transport", "model.class_conditional=false")


@pytest.mark.parametrize("transport", [TRANSPORT, ONE_CLASS])
def test_only_the_noise_moves_and_only_within_its_group(reader: Mapped, transport: Config) -> None:
    (free,), (bound,) = (step(reader, c, 1, BATCH, 1) for c in (config(), transport))
    for name in ("x1", "t", "labels"):
        assert torch.equal(getattr(free, name), getattr(bound, name))
    order = torch.cdist(bound.x0.flatten(1), free.x0.flatten(1)).argmin(1).numpy()
    assert torch.equal(bound.x0, free.x0[order])
    assert np.array_equal(order // GROUP, np.arange(BATCH) // GROUP)
    assert not np.array_equal(order, np.arange(BATCH))
    crossed = int((free.labels[order] != free.labels).sum())
    assert (crossed == 0) == transport.pairs_within_classes
    assert (bound.x0 - bound.x1).square().sum() < (free.x0 - free.x1).square().sum()


@pytest.fixture(scope="module")
def dark_and_bright(tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    """Two classes of 60 images each, apart in brightness."""
    folder = tmp_path_factory.mktemp("dark_and_bright")
    record = write_pack(folder, num=120, size=8, classes=2)
    images = np.load(folder / "images.npy") // 4
    images[60:] += 190
    np.save(folder / "images.npy", images)
    return Mapped(open_pack(folder, record), 0, torch.device("cpu"))


def mean_noise(reader: Mapped, settings: Config, label: int | None) -> tuple[float, float]:
    """Mean over 100 steps of the noise of a class (None: of all), and its standard error if the
    noise is standard normal."""
    batches = [draw(reader, settings, np.arange(k * 12, k * 12 + 12)) for k in range(100)]
    x0, labels = joined(batches, "x0"), joined(batches, "labels")
    chosen = x0 if label is None else x0[labels == label]
    return float(chosen.double().mean()), chosen.numel() ** -0.5


@pytest.mark.parametrize("label", [0, 1, None])
def test_the_noise_of_each_class_is_the_noise_that_sampling_draws(
    dark_and_bright: Mapped, label: int | None
) -> None:
    """Across classes, the bright class would get the bright noise."""
    settings = config(
        "train.coupling=optimal_transport", "train.coupling_images=12", "train.label_dropout=0"
    )
    mean, error = mean_noise(dark_and_bright, settings, label)
    assert abs(mean) < 3 * error


@pytest.mark.parametrize("word", ["model.class_conditional=false", "train.label_dropout=1"])
def test_a_network_without_classes_pairs_across_them(dark_and_bright: Mapped, word: str) -> None:
    whole = ["train.coupling=optimal_transport", "train.coupling_images=12"]
    mean, error = mean_noise(dark_and_bright, config(*whole, word), None)
    assert abs(mean) < 3 * error
    across = draw(dark_and_bright, config(*whole, word), np.arange(12))
    within = draw(dark_and_bright, config(*whole), np.arange(12))
    assert (across.x0 - across.x1).square().sum() < (within.x0 - within.x1).square().sum()


def test_groups_with_few_images_of_a_class_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = write_pack(tmp_path, num=100, size=8, classes=50)
    pack = open_pack(tmp_path, record)
    assert coupling.share_with_partner(pack.labels, 4) == pytest.approx(1 - 0.98**3)
    said = {}
    for name, chosen in {"within": TRANSPORT, "across": ONE_CLASS, "free": config()}.items():
        FlowMatching(chosen, pack).place(torch.device("cpu"), announce=True)
        FlowMatching(chosen, pack).place(torch.device("cpu"), announce=False)
        said[name] = capsys.readouterr().out
    sentence = (
        "in groups of train.coupling_images=4 only 6% of the images meet another of their class"
    )
    assert said["within"].count(sentence) == 1
    assert "note" not in said["across"] + said["free"]


def test_only_runs_that_pair_within_classes_begin_anew() -> None:
    plain = config("train.coupling=optimal_transport", "model.class_conditional=false")
    keys = {"keys": identity_keys(plain), "data": "x"}
    assert identity(plain, "x") == sha256_json(keys)[:12]
    keys = {"keys": identity_keys(TRANSPORT), "data": "x"}
    assert identity(TRANSPORT, "x") != sha256_json(keys)[:12]


def test_groups_that_do_not_fill_the_batch_are_refused() -> None:
    sentence = "coupling_images=5 is not valid: with optimal_transport use a divisor of .*batch=12"
    with pytest.raises(UserError, match=sentence):
        config("train.coupling=optimal_transport", "train.coupling_images=5")
    assert config("train.coupling_images=5").train.coupling == "independent"

"""Semidiscrete optimal transport: the map, the fit of its duals, and the pairs of a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import chi2, norm

from pipeline import coupling as step_coupling
from pipeline.compute import draws
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config
from pipeline.data.duals import load_duals, with_duals
from pipeline.data.pack import Pack, open_pack, read_record
from pipeline.data.reader import Mapped, Resident, rows_at
from pipeline.flow import atoms, coupling, semidual
from pipeline.flow.workload import Batch, FlowMatching, draw
from pipeline.training.trainer import share
from tests.conftest import resolved, write_pack

CPU = Ranks(0, 1, torch.device("cpu"))
BATCH, NUM = 12, 30


def problem(images: np.ndarray, flip: bool = False, group: Ranks = CPU) -> semidual.Problem:
    """Images (N,H,W,C) uint8, all with the same share."""
    pixels = torch.from_numpy(images)
    rows = torch.arange(len(images))
    of = atoms.Atoms(rows, pixels[0].numel(), lambda chosen: pixels[chosen], held=True)
    weights = torch.full((len(images),), 1 / len(images), dtype=torch.float64)
    return semidual.Problem(of, weights, tuple(images.shape[1:]), flip, group)


def fitted(of: semidual.Problem, tolerance: float, draws_each: int = 10**6) -> semidual.Fit:
    return semidual.fit(of, tolerance, draws_each, lambda text: None)


def random_images(num: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def points(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1


# --- the map ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), flip=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_best_atom_is_that_of_whole_numbers(seed: int, flip: bool) -> None:
    images = random_images(7, 3, 4, 3, seed=seed)
    images[5] = images[2]  # a tie, which the first one wins
    noise = torch.randn(9, 3, 4, 3, generator=torch.Generator().manual_seed(seed))
    duals = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    duals[5] = duals[2]
    queries, units = atoms.views(noise, flip), atoms.in_units(duals)
    place, view = problem(images).atoms.best(queries, units)
    for b in range(len(noise)):
        scores = [
            int(units[j]) + sum(int(q) * int(p) for q, p in zip(x[b], image.ravel(), strict=True))
            for x in queries
            for j, image in enumerate(images)
        ]
        assert scores.index(max(scores)) == int(view[b]) * 7 + int(place[b])
        assert place[b] != 5


def test_chunks_and_batches_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(50, 4, 4, 3)
    noise, duals = torch.randn(64, 4, 4, 3), torch.randn(50, dtype=torch.float64)
    queries, units = atoms.views(noise, True), atoms.in_units(duals)
    whole = problem(images).atoms.best(queries, units)
    monkeypatch.setattr(atoms, "CHUNK", 7 * 48)  # eight chunks
    parts = problem(images).atoms
    assert len(list(parts.chunks())) == 8
    for size in (1, 5, 64):
        found = [parts.best([q[k : k + size] for q in queries], units) for k in range(0, 64, size)]
        for a, b in zip(whole, zip(*found, strict=True), strict=True):
            assert torch.equal(a, torch.cat(b))


def test_a_mirrored_noise_finds_the_mirrored_image() -> None:
    images = random_images(20, 4, 4, 3)
    noise, units = torch.randn(100, 4, 4, 3), torch.zeros(20, dtype=torch.float64)
    place, view = problem(images).atoms.best(atoms.views(noise, True), units)
    other, other_view = problem(images).atoms.best(atoms.views(noise.flip(2), True), units)
    assert torch.equal(place, other) and torch.equal(view, 1 - other_view)
    assert 20 < int(view.sum()) < 80


def test_copies_are_one_atom() -> None:
    images = random_images(6, 2, 4, 3)
    images[3], images[5] = images[1], images[0][:, ::-1]
    rows, copies = atoms.distinct(images, np.array([1, 2, 3, 5, 0]), flip=False)
    assert (rows.tolist(), copies.tolist()) == ([1, 2, 5, 0], [2, 1, 1, 1])
    rows, copies = atoms.distinct(images, np.array([1, 2, 3, 5, 0]), flip=True)
    assert (rows.tolist(), copies.tolist()) == ([1, 2, 5], [2, 1, 2])


# --- the fit ---------------------------------------------------------------------------------


def test_on_a_line_cells_end_at_the_quantiles() -> None:
    levels = np.array([0, 30, 90, 130, 200, 255], np.uint8).reshape(-1, 1, 1, 1)
    duals = fitted(problem(levels), 0.01).duals.numpy()
    ends = -np.diff(duals) / np.diff(points(levels).ravel())
    np.testing.assert_allclose(ends, norm.ppf(np.arange(1, 6) / 6), atol=0.03)


def test_it_is_the_best_assignment_of_many_noises() -> None:
    images, copies = random_images(10, 2, 2, 3), 40
    of = problem(images)
    duals = fitted(of, 0.02).duals
    noise = draws.normal(7, draws.DUALS, torch.arange(10 * copies), (2, 2, 3))
    place, _ = of.atoms.best(atoms.views(noise, False), atoms.in_units(duals))
    cost = cdist(noise.flatten(1).numpy(), points(images), "sqeuclidean")
    rows, columns = linear_sum_assignment(np.repeat(cost, copies, axis=1))
    exact = columns // copies
    assert (place.numpy() == exact).mean() > 0.85
    least = cost[rows, exact].mean()
    found = cost[rows, place.numpy()].mean()
    assert found == pytest.approx(least, abs=0.05 * (cost.mean() - least))


@pytest.mark.parametrize("flip", [False, True])
def test_shares_pass_a_chi_square_test(flip: bool) -> None:
    num, total = 8, 100_000
    of = problem(random_images(num, 1, 2, 3), flip)
    fit = fitted(of, 0.005)
    assert fit.deviation <= 0.005
    counts = of.counts(fit.duals, draws.DUALS_CHECK, 10**9, total).numpy()
    statistic = ((counts - total / num) ** 2 / (total / num)).sum()
    assert counts.sum() == total and statistic < chi2.ppf(0.999, num - 1)
    # and does not before it is fitted
    counts = of.counts(torch.zeros(num), draws.DUALS_CHECK, 10**9, total).numpy()
    assert ((counts - total / num) ** 2 / (total / num)).sum() > 100 * statistic


def test_the_deviation_is_told_without_bias() -> None:
    levels = np.array([0, 255], np.uint8).reshape(-1, 1, 1, 1)
    end = float(norm.ppf(0.55))  # shares 0.55 and 0.45
    duals = torch.tensor([2 * end, 0.0], dtype=torch.float64)
    found = [problem(levels).deviation2(duals, k * 1000, 1000) for k in range(200)]
    assert np.mean(found) == pytest.approx(0.01, abs=4 * np.std(found) / 200**0.5)
    fair = [problem(levels).deviation2(duals * 0, k * 1000, 1000) for k in range(200)]
    assert np.mean(fair) == pytest.approx(0, abs=4 * np.std(fair) / 200**0.5)


def test_images_of_unlike_contrast_get_equal_shares() -> None:
    contrast = np.linspace(0.1, 1, 40).reshape(-1, 1, 1, 1)
    images = ((random_images(40, 4, 4, 3) - 127.5) * contrast + 127.5).astype(np.uint8)
    of = problem(images)
    fit = fitted(of, 0.1)
    counts = of.counts(fit.duals, draws.DUALS_CHECK, 10**9, 20_000) / 500
    assert fit.deviation <= 0.1 and 0.5 < counts.min() < counts.max() < 1.5


def test_a_cap_ends_the_fit_with_the_best_duals() -> None:
    of, said = problem(random_images(40, 4, 4, 3)), []
    fit = semidual.fit(of, 0.001, 700, said.append)
    assert fit.deviation > 0.001 and fit.draws == 32 * 3 * 256
    assert len(said) == 2 and "noises per image: shares deviate by" in said[0]


class OneOfTwo(Ranks):
    """A rank of two whose sums are its own alone."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_ranks_share_the_noises_out() -> None:
    images, duals = random_images(9, 2, 2, 3), torch.zeros(9, dtype=torch.float64)
    parts = [
        problem(images, group=OneOfTwo(k, 2, CPU.device)).counts(duals, draws.DUALS, 100, 77)
        for k in range(2)
    ]
    assert torch.equal(sum(parts), problem(images).counts(duals, draws.DUALS, 100, 77))
    assert all(part.sum() > 0 for part in parts)


# --- the pairs of a run ----------------------------------------------------------------------

WORDS = ["experiment=tiny", f"train.batch={BATCH}", "train.flip=true", "coupling.tolerance=0.05"]
ANY_CLASS = "model.class_conditional=false"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 30 images in two classes, and the files of its duals."""
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, num=NUM, size=8, classes=2).write(folder / "record.json")
    for name, words in {"classes": [], "whole": [ANY_CLASS]}.items():
        step_coupling.main(
            [*WORDS, "train.coupling=semidiscrete", f"data.path={folder}", *words,
             f"record={folder}/record.json", f"out={folder}/{name}.npz"]
        )  # fmt: skip
    return folder


def config(*words: str) -> Config:
    return resolved(*WORDS, *words)


SEMIDISCRETE = config("train.coupling=semidiscrete")


@pytest.fixture(scope="module")
def pack(folder: Path) -> Pack:
    return with_duals(open_pack(folder, read_record(folder)), load_duals(folder / "classes.npz"))


def batches(
    pack: Pack, settings: Config, number: int, micro: int, world: int, kind: type = Mapped
) -> list[Batch]:
    """All micro-batches of step `number`, each by a reader that has just been opened."""
    first, passes = number * BATCH, BATCH // (micro * world)
    shares = [share(first, k, r, world, micro) for k in range(passes) for r in range(world)]
    reader = kind(pack, settings.train.seed, CPU.device)
    by_duals = coupling.transport(reader, settings)
    return [draw(reader, settings, positions, by_duals) for positions in shares]


def joined(parts: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in parts])


SHARES = [(m, w) for w in (1, 2, 3) for m in (1, 2, 3, 4, 6, 12) if BATCH % (m * w) == 0]


@pytest.mark.parametrize(("micro", "world"), SHARES)
def test_pairs_do_not_know_how_a_step_is_shared_out(pack: Pack, micro: int, world: int) -> None:
    for number in (0, 2):  # step 2 crosses into the second epoch
        whole = batches(pack, SEMIDISCRETE, number, BATCH, 1, Resident)
        parts = batches(pack, SEMIDISCRETE, number, micro, world)
        for name in ("x0", "x1", "t", "labels"):
            assert torch.equal(joined(parts, name), joined(whole, name)), name


def test_noise_and_class_are_those_of_any_coupling(pack: Pack) -> None:
    words = ["train.label_dropout=0"]
    free, bound = (
        batches(pack, config(*words, f"train.coupling={kind}"), 1, BATCH, 1)[0]
        for kind in ("independent", "semidiscrete")
    )
    for name in ("x0", "t", "labels"):
        assert torch.equal(getattr(free, name), getattr(bound, name))
    assert not torch.equal(free.x1, bound.x1)
    assert (bound.x0 - bound.x1).square().sum() < (free.x0 - free.x1).square().sum()


def test_messages_name_the_rows_that_were_seen(pack: Pack) -> None:
    workload = FlowMatching(SEMIDISCRETE, pack)
    workload.place(CPU.device, announce=False)
    positions = np.arange(BATCH)
    rows = workload.rows(positions)
    x1 = workload.batch(positions).x1
    for row, image in zip(rows, (x1 + 1) * 127.5, strict=True):
        stored = torch.from_numpy(pack.images[row].copy()).permute(2, 0, 1)
        assert any(torch.equal(image.round().byte(), seen) for seen in (stored, stored.flip(2)))
    assert np.array_equal(pack.labels[rows], pack.labels[rows_at(positions, 0, NUM)])
    assert workload.locate(positions[:2]) == f"rows {rows[0]}, {rows[1]} of the pack"
    assert FlowMatching(config(), pack).locate(positions[:1]) == (
        f"rows {rows_at(positions, 0, NUM)[0]} of the pack"
    )


@pytest.fixture(scope="module")
def cost_of(folder: Path) -> Callable[..., tuple[float, torch.Tensor]]:
    """Mean squared distance of the pairs of 64 epochs, without classes; and the noises."""
    pack = with_duals(open_pack(folder, read_record(folder)), load_duals(folder / "whole.npz"))

    def cost(kind: str) -> tuple[float, torch.Tensor]:
        words = ["train.batch=1920", "train.coupling_images=128", ANY_CLASS]
        settings = config(f"train.coupling={kind}", *words)
        reader = Mapped(pack, 0, CPU.device)
        by_duals = coupling.transport(reader, settings)
        x0, x1, _ = coupling.pairs(reader, settings, np.arange(64 * NUM), by_duals)
        return float((x0 - x1).double().square().flatten(1).sum(1).mean()), x0

    return cost


def test_the_cost_is_between_the_dual_bound_and_that_of_groups(
    folder: Path, cost_of: Callable[..., tuple[float, torch.Tensor]]
) -> None:
    (free, x0), (groups, _), (found, _) = map(
        cost_of, ("independent", "optimal_transport", "semidiscrete")
    )
    # Weak duality on these very noises, of which each image gets as many
    images = np.load(folder / "images.npy")
    both = np.concatenate([images, images[:, :, ::-1]])
    y = torch.from_numpy(points(both.transpose(0, 3, 1, 2)))
    h = torch.from_numpy(np.tile(load_duals(folder / "whole.npz").values, 2))
    x = x0.flatten(1).double()
    most = ((x @ y.T + h).max(1).values).mean() - h.mean()
    bound = float(x.square().sum(1).mean() + y.square().sum(1).mean() - 2 * most)
    assert bound <= groups < free
    assert found < groups
    assert found == pytest.approx(bound, abs=0.05 * (free - bound))


def test_a_changed_dual_changes_the_pairs_of_its_image_alone(pack: Pack) -> None:
    assert pack.duals is not None
    row = int(np.flatnonzero(pack.labels == 0)[3])
    never = replace(pack, duals=np.where(np.arange(NUM) == row, -np.inf, pack.duals))
    positions = np.arange(20 * BATCH)
    rows = []
    for one in (pack, never):
        workload = FlowMatching(SEMIDISCRETE, one)
        workload.place(CPU.device, announce=False)
        rows.append(workload.rows(positions))
    changed = rows[0] != rows[1]
    assert changed.any() and (rows[0][changed] == row).all() and not (rows[1] == row).any()

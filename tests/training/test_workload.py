"""Training knows only the protocol of a workload: a second one trains, resumes, is shared out."""

from pathlib import Path

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer
from tests.conftest import resolved
from tests.on_ranks import on_ranks
from tests.test_train import difference, losses, outcome
from tests.training import vectors


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Weights and curve of one process."""
    out = tmp_path_factory.mktemp("vectors")
    vectors.main(str(out))
    return outcome(out)


def on_two_ranks(out: Path, *words: str) -> tuple:
    on_ranks(2, "tests.training.vectors", str(out), *words)
    return outcome(out)


def test_it_learns(reference: tuple) -> None:
    curve = losses(reference[1])
    assert len(curve) == 40 and curve[-1] < 0.5 * curve[0]


def test_it_resumes_to_the_bit(reference: tuple, tmp_path: Path) -> None:
    vectors.main(str(tmp_path), "train.images=240")
    vectors.main(str(tmp_path))
    weights, rows = outcome(tmp_path)
    assert all(torch.equal(weights[name], reference[0][name]) for name in reference[0])
    assert losses(rows) == losses(reference[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_two_ranks_make_the_same_model(strategy: str, reference: tuple, tmp_path: Path) -> None:
    weights, rows = on_two_ranks(tmp_path, f"runtime.strategy={strategy}")
    assert difference(weights, reference[0]) < 1e-5
    assert losses(rows) == pytest.approx(losses(reference[1]), rel=1e-5)


def test_weights_and_torch_know_all_bits_of_the_seed(tmp_path: Path) -> None:
    def first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights, and what torch draws in the first step."""
        config, cpu = resolved(*vectors.WORDS, f"train.seed={seed}"), torch.device("cpu")
        trainer = Trainer(Job(config, vectors.Vectors(), tmp_path, tmp_path), Ranks(0, 1, cpu))
        trainer._seed_torch()
        return torch.cat([p.flatten() for p in trainer.net.parameters()]), torch.rand(5)

    small, large = first(7), first(7 + 2**32)
    torch.manual_seed(7)
    drawn = torch.cat([p.flatten() for p in vectors.Vectors().build().parameters()])
    assert torch.equal(small[0], drawn)  # as in every run before
    assert not torch.equal(small[0], large[0]) and not torch.equal(small[1], large[1])


def test_messages_say_where_its_items_lie(tmp_path: Path) -> None:
    config = resolved(*vectors.WORDS, "train.lr=1e30")
    trainer = Trainer(
        Job(config, vectors.Vectors(), tmp_path, tmp_path), Ranks(0, 1, torch.device("cpu"))
    )
    with pytest.raises(UserError, match=r"not finite at step \d.* \(vectors \d+ to \d+\)"):
        for _ in range(4):
            trainer.train_step()
        trainer.check_finite()

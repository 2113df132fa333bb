"""Keys of documents: the recipe of the Large Concept Model, and what of them names a training."""

import json
from pathlib import Path

import pytest

from pipeline.base.files import write_json
from pipeline.config import paths
from pipeline.config.load import load_step
from pipeline.config.stages import CONCEPT_KEYS, stage_keys
from pipeline.training.identity import identity
from pipeline.training.learning_rate import learning_rate
from tests.concept.documents import config_of

DATA = {"vectors": "0", "offsets": "1", "normaliser": "2"}
STEPS, PIECES = 250_000, 1792  # of the recipe: 32 GPUs with 7,168 sentences each


def test_the_recipe_key_for_key() -> None:
    config, _ = load_step(["experiment=lcm_mse_1_6b"], (), {})
    model, train, concept = config.model, config.train, config.concept
    assert model.model_dump() == {
        "kind": "lcm", "channels": 2048, "layers": 32, "heads": 16, "inner_channels": 5632,
        "positions": "rope", "norm": "rms", "mlp": "swiglu", "output_bias": True,
        "dropout": 0.1, "final_dropout": 0.0,
    }  # fmt: skip
    assert concept and (concept.dimension, concept.max_sentences) == (1024, 128)
    assert concept.scale == "lcm_tails"
    assert {
        "batch": PIECES, "images": STEPS * PIECES, "betas": (0.9, 0.95), "weight_decay": 0.1,
        "eps": 1e-5, "clip_grad_norm": 25.0, "precision": "fp16", "seed": 1,
        "ema_halflife_images": (0,),
    }.items() <= train.model_dump().items()  # fmt: skip
    rates = [learning_rate(train, step * PIECES) for step in (0, 10_000, STEPS, STEPS + 1)]
    assert rates == pytest.approx([1e-7, 4e-4, 1e-5, 4e-4], rel=1e-4)
    assert config.runtime.checkpoint_images == 2000 * PIECES


def test_a_training_is_named_by_its_documents_and_pieces() -> None:
    whole = identity(config_of(), DATA)
    assert identity(config_of("concept.max_sentences=9"), DATA) != whole
    assert identity(config_of(), DATA | {"normaliser": "3"}) != whole
    assert identity(config_of("concept.suffix=end.npy"), DATA) == whole  # the pack says it
    assert identity(config_of("data.source=train", "data.recipe=adm"), DATA) == whole
    assert paths.run_folder(config_of()) == Path("results/lcm_mse_smoke/made")


def test_stages_get_their_keys_back_from_their_json(tmp_path: Path) -> None:
    config = config_of("concept.max_sentences=9", "train.lr=0.5", "train.images=24")
    for stage in CONCEPT_KEYS:
        write_json(tmp_path / "config.json", stage_keys(config, stage))
        words = [f"config={tmp_path}/config.json", "experiment=lcm_mse_smoke"]
        assert stage_keys(load_step(words, (), {})[0], stage) == stage_keys(config, stage)
    keys = json.dumps(stage_keys(config, "train"))
    assert "resolution" not in keys and '"workload": "concept"' in keys

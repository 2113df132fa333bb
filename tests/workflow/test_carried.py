"""Values of --config reach the jobs of a cluster whatever characters they have."""

import shlex
import subprocess
from types import SimpleNamespace

import pytest
from snakemake.cli import parse_config
from snakemake_interface_executor_plugins.utils import format_cli_arg

from pipeline.base.errors import UserError
from pipeline.config.load import DEFAULT_FILE, load_yaml
from pipeline.workflow.carried import carry
from pipeline.workflow.doors import of_environment, read_values
from pipeline.workflow.experiment import Experiment

PLACES = ["/x/dol$HOME", "/x/it's", '/x/a "b"', "/x/a b", "/x/`id`;#1", "/x/é\\n&|*"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("door", ["set", "data"])
def test_any_character_reaches_a_job(place: str, door: str) -> None:
    quoted = "'" + place.replace("'", "''") + "'"
    values = {"set": [f"data.dir={quoted}"]} if door == "set" else {"data": {"dir": place}}
    given = {"experiment": "tiny", **values}
    base = load_yaml(DEFAULT_FILE)
    settings = SimpleNamespace(config=given, config_args=None)
    experiment = Experiment(base, carry(given, settings))
    assert experiment.config.data.dir == place
    # As the plugin for Slurm writes it: Snakemake's quotes inside those of --wrap
    words = format_cli_arg("--config", settings.config_args)
    script = 'printf %s "' + words.replace('"', '\\"') + '"'
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    [flag, word] = shlex.split(printed.stdout)
    assert flag == "--config"
    # In the job
    there = SimpleNamespace(config=parse_config([word]), config_args=[word])
    read = read_values([], [word])[1]
    assert read == there.config
    again = Experiment(base, carry(read, there))
    assert again.config == experiment.config and again.settings == experiment.settings
    assert there.config_args == settings.config_args


def test_a_job_without_the_variable_has_its_resolution() -> None:
    """Pods get few variables."""
    base, given = load_yaml(DEFAULT_FILE), {"experiment": "imagenet", "set": ["seed=1"]}
    environment = {"IMAGENET_RES": "32"}
    settings = SimpleNamespace(config_args=None)
    assert carry(given, settings, of_environment(base, given, environment)) == given
    [word] = settings.config_args
    there = carry(read_values([], [word])[1], SimpleNamespace())
    assert there == given | {"data": {"resolution": "32"}}
    # Neither without the variable, nor in the job once more, nor if the configuration says it
    assert of_environment(base, given, {}) == {}
    assert of_environment(base, {"carried": word.partition("=")[2]}, environment) == {}
    assert of_environment(base, {"experiment": "tiny"}, environment) == {}


def test_what_nobody_encoded_is_refused() -> None:
    with pytest.raises(UserError, match="carried= is for jobs of Snakemake alone"):
        carry({"carried": "7"}, SimpleNamespace(config_args=None))

"""The front door and the README say what is there."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import DEFAULT_FILE, known_keys, lay, load_step, load_yaml, resolve
from pipeline.config.schema import Config
from pipeline.steps import STEPS
from tests.conftest import ROOT


def test_make_help_lists_the_targets() -> None:
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("smoke", "data", "train", "sample", "evaluate", "report", "plan", "test"):
        assert re.search(rf"^make {target} +\S", text, re.M), text


@pytest.mark.parametrize(
    ("word", "refused"),
    [
        ("ARGS=train.images=64000", True),
        ("EXPERIMNT=smoke", True),
        ("SET=train.lr=2e-4 X=1", False),
        ("IMAGENET_DIR=/data", False),  # for the environment of the jobs
    ],
)
def test_make_refuses_a_variable_that_nothing_reads(word: str, refused: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
    done = subprocess.run(
        ["make", "help", word], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert (done.returncode != 0) == refused
    name = word.partition("=")[0]
    assert (f"no target reads {name}: use SET='key=value …'" in done.stderr) == refused


@pytest.mark.parametrize("word", ["EXPERIMENT=shapes", "CONFIG=my.yaml", "SET=train.lr=1e-3"])
def test_make_smoke_reads_what_it_is_given(word: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "smoke", word, "GPUS=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if word.startswith("EXPERIMENT"):
        assert "make all EXPERIMENT=shapes" in done.stderr and done.returncode
    else:
        assert word.rpartition("=")[2] in done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize(("given", "is_on"), [("", False), ("0", False), ("1", True)])
def test_a_switch_of_make_is_off_if_it_is_0(given: str, is_on: bool) -> None:
    words = [f"{name}={given}" for name in ("VERBOSE", "CALIBRATE", "SLOW")]
    command = ["make", "--dry-run", "plan", "report", "test", *words, "GPUS=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("--quiet" not in re.sub(".*pip install.*", "", done)) == is_on
    assert ("--calibrate" in done) == is_on
    assert ('-m ""' in done) == is_on


def test_make_data_makes_the_pack_again_from_any_shell() -> None:
    """Whatever python is there, and however many threads OpenMP may have."""
    words = ["EXPERIMENT=lcm_mse_smoke", "GPUS=0", "-o", ".venv/installed"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "77", "HOME": os.environ["HOME"]}
    done = subprocess.run(
        ["make", "--dry-run", "data", *words],
        cwd=ROOT, capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    maker, snakemake = done.stdout.splitlines()[-1].split("; ")
    assert f"--cores {len(os.sched_getaffinity(0))} " in snakemake
    assert "--forcerun $maker " in snakemake
    command = f"{maker}; echo $maker"
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    printed = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, text=True,
                             capture_output=True, check=True)  # fmt: skip
    assert printed.stdout == "prepare\n"


@pytest.mark.parametrize("venv", ["/other/venv", "venv"])
def test_make_finds_the_environment_that_it_is_given(venv: str) -> None:
    command = ["make", "--print-data-base", "--dry-run", "help", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    path = re.findall(r"^PATH :?= (.*)$", done.stdout, re.M)[0]
    assert path.startswith(f"{ROOT / venv}/bin:")


@pytest.mark.parametrize("is_given", [False, True])
def test_make_has_a_cache_without_a_home(is_given: bool, tmp_path: Path) -> None:
    """Snakemake makes one in the home by itself, and does not start if it cannot."""
    environment = {**os.environ, "HOME": "/proc/none"}  # where root cannot write either
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache") if is_given else ""}
    command = ["make", "--print-data-base", "--dry-run", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    place = tmp_path / "cache" if is_given else ROOT / ".snakemake/cache"
    assert re.findall(r"^XDG_CACHE_HOME :?= (.*)$", done.stdout, re.M) == [str(place)]
    assert done.stderr == ""


@pytest.mark.parametrize(("given", "name"), [({"LOGNAME": "me"}, "me"), ({}, str(os.getuid()))])
def test_make_has_a_name_for_a_user_without_one(
    given: dict[str, str], name: str, tmp_path: Path
) -> None:
    """Snakemake asks for one, and does not start if a container's user has none."""
    (tmp_path / "id").write_text("#!/bin/sh\necho $UID_HERE; echo cannot find it >&2; exit 1\n")
    (tmp_path / "id").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER")} | given
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "UID_HERE": str(os.getuid())}
    command = ["make", "--print-data-base", "--dry-run", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert re.findall(r"^LOGNAME :?= (.*)$", done.stdout, re.M) == [name]
    assert done.stderr == ""


def test_make_knows_each_variable_that_it_reads() -> None:
    text = (ROOT / "Makefile").read_text()
    found = re.search(r"^READ := (.*)$", text, re.M)
    assert found and {*re.findall(r"^([A-Z_]+) \?=", text, re.M)} <= {*found[1].split()}


def test_the_pages_name_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`| )make ([a-z]+)(?=[` ]|$)", code(page), re.M))
        assert named <= targets, page
        assert len(named) > 5 or page.name != "README.md"


def code(page: Path) -> str:
    """The code of a page: its blocks and the words between backquotes, a line each."""
    blocks = re.findall(r"```\w*\n(.*?)```", text := page.read_text(), re.S)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures and all((ROOT / picture).stat().st_size > 0 for picture in pictures)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OLDER_KEYS = {"downsample.fast"}  # pipeline.config.older_form still reads it
MAKE_VARIABLES = {
    "GPUS",
    "CORES",
    "RES",
    "EXPERIMENT",
    "SET",
    "CONFIG",
    "BENCH",
    "PART",
    "CALIBRATE",
    "PIP_FLAGS",
}
FILE_ENDINGS = (".json", ".py", ".npy", ".png", ".html", ".tar", ".tar.gz", ".zip")
SECTIONS = "|".join(name for name in Config.model_fields if name != "experiment")


def is_there(page: Path, link: str) -> bool:
    """Whether a relative link of a page leads to a file and, if it names one, to a heading."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not anchor or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
    return anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_modules_and_keys_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https:") or is_there(page, link), link
    for module in re.findall(r"-m (pipeline(?:\.\w+)+)", text):
        if module != "pipeline.STEP":
            assert importlib.util.find_spec(module), module
    keys = set(re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)?)(?![\w/(])", text))
    files = {key for key in keys if key.endswith(FILE_ENDINGS)}
    assert keys - files <= {*known_keys(), *OLDER_KEYS}


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's ```sh blocks, without variables set before it."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_keys_and_values_of_a_command_are_valid(page: Path, tmp_path: Path) -> None:
    text, mine = page.read_text(), tmp_path / "mine.yaml"
    mine.write_text("".join(re.findall(r"```yaml\n(# mine.yaml\n.*?)```", text, re.S)) or "{}")
    base = lay(load_yaml(DEFAULT_FILE), load_yaml(mine))
    assert bool(commands(page)) == ("```sh" in text)
    for words in commands(page):
        modules = [k for k, word in enumerate(words) if word == "-m"]
        step = STEPS.get(words[modules[-1] + 1].removeprefix("pipeline.")) if modules else None
        if step:
            step_words = [
                word.replace("config=mine.yaml", f"config={mine}")
                for word in words[modules[-1] + 2 :]
                if not word.startswith("config=results")
            ]
            load_step(step_words, step.words, environment={})
        elif words[0] in ("make", "snakemake"):
            given = {"make": make_words, "snakemake": snakemake_words}[words[0]](words)
            resolve(base, given, environment={})


def make_words(words: list[str]) -> dict[str, object]:
    """What a make command hands to Snakemake's --config."""
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    assert set(given) <= MAKE_VARIABLES
    settings = f"{given.get('SET', '')} data.resolution={given.get('RES', 64)}"
    experiment = {"experiment": given["EXPERIMENT"]} if "EXPERIMENT" in given else {}
    return {"set": settings} | experiment


def snakemake_words(words: list[str]) -> dict[str, object]:
    """The values after a snakemake command's --config."""
    after = words[words.index("--config") + 1 :] if "--config" in words else []
    last = next((k for k, word in enumerate(after) if word.startswith("--")), len(after))
    return {key: yaml.safe_load(value) for key, value in (w.split("=", 1) for w in after[:last])}


# Figures of pages, as the newest run of a record in results/benchmarks gives them.
FIGURES = [
    ("README", "shapes", "{wall_seconds[whole run after smoke]}", "253", "4:13 more"),
    ("README", "shapes", "{scores[class accuracy]:.1%}", "97.8%", "97.8 % after a longer"),
    ("README", "smoke", "{wall_seconds[whole run after installation]}", "193", "3:13 minutes"),
    ("README", "smoke", "{scores[lowest accuracy]:.1%}", "93.8%", "93.8 to 97.6 % of its"),
    ("README", "smoke", "{scores[highest accuracy]:.1%}", "97.6%", "93.8 to 97.6 % of its"),
    ("edm2", "smoke", "{scores[highest accuracy]:.0%}", "98%", "`smoke` gets 94 to 98 %"),
    ("discrete", "discrete-smoke", "{wall_seconds[whole run after installation]}", "337", "5:37"),
    ("discrete", "discrete-smoke", "{scores[class accuracy]:.1%}", "85.5%", "85.5 % of its"),
    ("lcm", "lcm-smoke", "{wall_seconds[whole run after installation]}", "41", "took 41 s"),
    ("lcm", "lcm-smoke", "{scores[squared error][network]}", "3.1", "cost 3.1"),
    ("lcm", "lcm-smoke", "{text[squared error][ridge]}", "396.2", "| 396.2 |"),
    ("lcm", "lcm-two-tower-smoke", "{wall_seconds[whole run after installation]}", "162", "2:42"),
    ("lcm", "lcm-two-tower-smoke", "{scores[squared error][network]:.1f}", "5.6", "defaults | 5.6"),
    ("lcm", "lcm-finetune-smoke", "{first loss:.1f}", "42.1", "begins at 42.1 per target"),
    ("lcm", "lcm-finetune-smoke", "{scores[squared error][network]:.2f}", "3.47", "pairs is 3.47"),
    ("memory-and-speed", "startup", "{bars[0][value]:.1f}", "2.3", "together use 2.3"),
    ("memory-and-speed", "startup", "{ratio[two ranks of a bare script]:.1f}", "4.5", "uses 4.5"),
    ("README", "train-h100", "{median[ours, bf16]:.0f}", "251", "251 images/s"),
    ("memory-and-speed", "train-h100", "{ratio[ours, bf16]:.1f}", "2.5", "2.5 times as fast as"),
    ("memory-and-speed", "train-h100", "{mfu:.0%}", "17%", "17 % of the GPU's peak"),
    ("memory-and-speed", "train", "{ratio[ours, bf16]:.1f}", "1.5", "was 1.5 times as"),
    ("memory-and-speed", "train", "{ratio[ours, float32]:.2f}", "1.03", "1.03 times as fast in"),
    ("memory-and-speed", "train", "{bars[1][value]:.1%}", "2.1%", "took 2.1 % of the time"),
    ("memory-and-speed", "train", "{bars[2][value]:.1e}", "1.4e-04", "agreed to 1.4e-4"),
    ("memory-and-speed", "scoring", "{seconds:.0f}", "419", "419 s for 100,000"),
    ("memory-and-speed", "scoring", "{peak_mb[100000 images]:.0f}", "564", "held 564 MB"),
    ("memory-and-speed", "scoring", "{peak_mb[10000 images]:.0f}", "594", "images 594 MB"),
    ("memory-and-speed", "loader", "{median[gathered]:,.0f}", "795,521", "gathered 796,000 images"),
    ("images-and-packs", "loader", "{ratio[gathered]:.0f}", "123", "123 times as many"),
    ("images-and-packs", "downsample", "{median[exact]:,.0f}", "2,016", "2,016 images/s"),
    ("images-and-packs", "downsample", "{median[fast]:,.0f}", "2,973", "2,973 images/s"),
    ("images-and-packs", "downsample", "{ratio[exact]:.1f}", "2.3", "2.3 times as fast as a"),
    ("images-and-packs", "downsample", "{ratio[fast]:.1f}", "3.3", "3.3 times the pool"),
    ("images-and-packs", "downsample", "{bars[2][value]:.1f}", "1.2", "1.2 times as fast as a"),
    ("sampling-and-scoring", "sampling", "{evaluations[1e-05][ours][nfe_mean]}", "83.0", "| 83.0"),
    ("sampling-and-scoring", "sampling", "{evaluations[0.001][ours][nfe_mean]}", "42.0", "| 42.0"),
    ("sampling-and-scoring", "sampling", "{bf16_grey_levels:.2f}", "0.52", "by 0.52 grey levels"),
    ("sampling-and-scoring", "sampling", "{ratio[one batched call]:.2f}", "0.98", "(0.98 times)"),
    ("sampling-and-scoring", "solvers", "{median[midpoint at 8]:.4f}", "0.0349", "| 0.0349"),
    ("sampling-and-scoring", "solvers", "{median[midpoint at 16]:.4f}", "0.0138", "| 0.0138"),
    ("sampling-and-scoring", "solvers", "{median[ab2 at 8]:.4f}", "0.0251", "| 0.0251"),
    ("sampling-and-scoring", "solvers", "{median[ab2 at 16]:.4f}", "0.0076", "| 0.0076"),
    ("sampling-and-scoring", "solvers", "{median[ab3 at 8]:.4f}", "0.0207", "| 0.0207"),
    ("sampling-and-scoring", "solvers", "{median[ab3 at 16]:.4f}", "0.0049", "| 0.0049"),
    ("sampling-and-scoring", "solvers", "{median[learned at 16]:.4f}", "0.0020", "| 0.0020"),
    ("sampling-and-scoring", "solvers", "{bars[2][value]:.2f}", "0.20", "was 0.20 times that"),
    ("sampling-and-scoring", "solvers", "{bars[3][value]:.2f}", "1.00", "(1.00 times)"),
    ("sampling-and-scoring", "seeds", "{median[kept in the reference]:.0f}", "54", "took 54 CPU"),
    ("sampling-and-scoring", "seeds", "{median[made for each seed]:.0f}", "124", "124 s when"),
    ("training", "couplings", "{median[independent]:.1f}", "37.6", "| `independent` | 37.6 |"),
    ("training", "couplings", "{median[optimal_transport]:.1f}", "36.2", "transport` | 36.2"),
    ("training", "couplings", "{median[semidiscrete]:.1f}", "37.9", "| `semidiscrete` | 37.9 |"),
    ("training", "couplings", "{bars[0][value]:.2f}", "0.99", "(0.99 times the evaluations"),
    ("training", "couplings", "{notes[0]}",
     "distance by 4 Euler steps: independent 392.1, "
     "optimal_transport 378.9, semidiscrete 353.3", "353.3"),
    ("training", "couplings", "{notes[1]}",
     "distance by 8 Euler steps: independent 394.6, "
     "optimal_transport 383.3, semidiscrete 352.6", "352.6"),
    ("training", "couplings", "{notes[2]}",
     "distance by 16 Euler steps: independent 411.5, "
     "optimal_transport 398.1, semidiscrete 363.1", "363.1"),
    ("sampling-and-scoring", "solvers", "{median[learned at 8]:.4f}", "0.0070", "| 0.0070"),
    ("sampling-and-scoring", "noise", "{noise[fid][std]:.3g}", "45.6", "| 45.6 | 4.5 |"),
    ("sampling-and-scoring", "noise", "{noise[fid][difference_in_stds]:.1f}", "4.5", "| 4.5 |"),
    ("sampling-and-scoring", "noise", "{noise[kid][std]:.3g}", "0.059", "| 0.059 | 3.0 |"),
    ("sampling-and-scoring", "noise", "{noise[kid][difference_in_stds]:.1f}", "3.0", "| 3.0 |"),
    ("sampling-and-scoring", "noise", "{noise[mind][std]:.3g}", "41.4", "| 41.4 | 3.2 |"),
    ("sampling-and-scoring", "noise", "{noise[mind][difference_in_stds]:.1f}", "3.2", "| 3.2 |"),
    ("edm2", "edm2", "{bars[0][value]:.2f}", "1.42", "were 1.42 times as fast"),
    ("edm2", "quality", "{bars[2][value]:.2f}", "1.38", "| 5,120 | 1.38 |"),
    ("edm2", "quality", "{curves[unet][0][distance]:.0f}", "748", "| 748 |"),
    ("edm2", "quality", "{curves[unet][0][accuracy]:.0%}", "26%", "| 26 % |"),
    ("edm2", "quality", "{curves[edm2][0][distance]:.0f}", "1035", "| 1035 |"),
    ("edm2", "quality", "{curves[edm2][0][accuracy]:.0%}", "11%", "| 11 % |"),
    ("edm2", "quality", "{bars[1][value]:.2f}", "1.64", "| 10,240 | 1.64 |"),
    ("edm2", "quality", "{curves[unet][1][distance]:.0f}", "536", "| 536 |"),
    ("edm2", "quality", "{curves[unet][1][accuracy]:.0%}", "43%", "| 43 % |"),
    ("edm2", "quality", "{curves[edm2][1][distance]:.0f}", "880", "| 880 |"),
    ("edm2", "quality", "{curves[edm2][1][accuracy]:.0%}", "22%", "| 22 % |"),
    ("edm2", "quality", "{bars[0][value]:.2f}", "1.63", "| 20,480 | 1.63 |"),
    ("edm2", "quality", "{curves[unet][2][distance]:.0f}", "349", "| 349 |"),
    ("edm2", "quality", "{curves[unet][2][accuracy]:.0%}", "67%", "| 67 % |"),
    ("edm2", "quality", "{curves[edm2][2][distance]:.0f}", "568", "| 568 |"),
    ("edm2", "quality", "{curves[edm2][2][accuracy]:.0%}", "42%", "| 42 % |"),
    ("edm2", "quality", "{bars[0][value]:.1f}", "1.6", "are 1.6 times as far"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "record", "path", "value", "text"), FIGURES)
def test_a_figure_equals_its_record(
    page: str, record: str, path: str, value: str, text: str
) -> None:
    run = json.loads((ROOT / f"results/benchmarks/{record}.json").read_text())["runs"][-1]
    assert path.format(**run) == value, f"{page} says {text!r}: bring it and this table up to date"
    file = ROOT / ("README.md" if page == "README" else f"docs/{page}.md")
    assert text in " ".join(file.read_text().split())


def test_imports_point_down_only() -> None:
    """The contracts in pyproject.toml: packages by layer, and steps that import no other step."""
    command = ["lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

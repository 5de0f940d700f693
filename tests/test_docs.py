"""What the documentation tells people to run is run, as far as it needs no cluster; of the rest, the dry run is."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from training import shorten_library

from jaxformer.cli import main as cli
from jaxformer.studies.space import read_space, read_words

DOCS = Path(__file__).resolve().parents[1] / "docs"
LAUNCHING = (DOCS / "launching.md").read_text(encoding="utf-8")
# A shorter smoke run.
SHORT = ["training.num_steps=12", "training.batch_size=8", "optimizer.warmup_steps=2", "evaluation.max_examples=8",
         "model.d_model=32", "model.d_ff=128", "model.num_heads=2", "model.head_dim=16"]  # fmt: skip
ON_CLUSTERS = ("logs", "stop", "delete")  # of jobs that only a cluster has


def blocks() -> list[str]:
    """Each indented line of docs/launching.md, without comments."""
    return [line.strip().partition("  #")[0].strip() for line in LAUNCHING.splitlines() if line.startswith("    ")]


COMMANDS = [line for line in blocks() if line.startswith("jaxformer ") and "…" not in line]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with mine.py as the page shows it."""
    code = re.search(r'(?m)^    """A small BERT.*?\n        return config$', LAUNCHING, re.DOTALL)
    assert code is not None
    (tmp_path / "mine.py").write_text("\n".join(line[4:] for line in code[0].splitlines()) + "\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "0"\n')
    return tmp_path


def test_files_that_pages_name_are_there() -> None:
    root = DOCS.parent
    pages = [*DOCS.rglob("*.md"), *root.glob("benchmarks/*.md"), root / "README.md", root / "CONTRIBUTING.md"]
    name = re.compile(r"(?:jaxformer|tests|benchmarks|experiments|launch|docs)/[\w/.-]+\.(?:py|md|json|png|svg)\b")
    named = {(page.name, path) for page in pages for path in name.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 40 and [(page, path) for page, path in sorted(named) if not (root / path).exists()] == []


def test_the_page_has_the_commands_of_every_place() -> None:
    places = {shlex.split(command)[2] for command in COMMANDS if command.startswith("jaxformer launch")}
    assert places == {"local", "slurm", "tpu_vm", "gke", "skypilot", "status", *ON_CLUSTERS}


@pytest.mark.slow
def test_the_walk_from_a_laptop_to_a_pod(
    project: Path, run_cli: Callable[..., "subprocess.CompletedProcess[str]"], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """What is launched here is a process of its own; what is only shown is not."""
    shorten_library(tmp_path_factory.mktemp("short"), monkeypatch)
    monkeypatch.chdir(project)
    printed: dict[str, str] = {}
    for command in COMMANDS:
        _, *words = shlex.split(command)
        if words[0] == "launch" and words[1] in ON_CLUSTERS:
            continue
        if words[0] == "launch" and words[1] not in ("local", "status"):
            words.insert(2, "--dry-run")
        elif "--config=mine.py:smoke" in words:
            words += [f"--config.{key}" for key in SHORT]
        if words[:2] == ["launch", "local"]:
            done = run_cli(*words, cwd=project)
            code, printed[command] = done.returncode, done.stdout + done.stderr
        else:
            code, printed[command] = cli.main(words), "".join(capsys.readouterr())
        assert code == 0, f"{command}\n{printed[command]}"
    for run in ("mine", "mine-2"):
        assert (project / "runs" / run / "checkpoints" / "12" / "digest.json").exists()
    assert "mine-2" in printed["jaxformer launch status"] and "done" in printed["jaxformer launch status"]
    assert "#SBATCH --nodes=2" in "".join(printed.values()) and "--accelerator-type=v5litepod-16" in "".join(
        printed.values()
    )


def test_the_commands_of_the_page_are_ones_that_the_parser_takes() -> None:
    for command in COMMANDS:
        own, _, other = command.removeprefix("jaxformer ").partition(" -- ")
        for words in filter(None, (own, other)):
            cli._parser().parse_args(shlex.split(words))


@pytest.mark.parametrize("page", ["sweeps.md", "fine-tuning.md", "reproducing.md"])
def test_the_commands_of_a_page_are_ones_that_the_parser_and_the_search_take(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip().partition("  #")[0] for line in text.splitlines() if line.startswith("    jaxformer ")]
    assert len(lines) >= 5
    for line in lines:
        own, _, other = line.removeprefix("jaxformer ").partition(" -- ")
        for words in filter(None, (own, other)):
            kept, _, searched = cli._sorted(shlex.split(words))
            cli._parser().parse_args(kept)
            if searched:
                assert read_space(read_words(searched)).to_dict()

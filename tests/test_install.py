"""What users install: the wheel, away from this repository."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from compiling import xla_flags

from jaxformer.storage import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "--config.training.num_steps=12",
    "--config.optimizer.warmup_steps=2",
    "--config.training.batch_size=8",
    "--config.evaluation.max_examples=8",
]
OWN = '''
"""My BERT."""

from jaxformer.experiments import bert


def get_config(arg=""):
    config = bert.get_config(arg)
    config.model.num_layers = 1
    return config
'''


def image_folder(tmp_path: Path) -> Path:
    """What a container image is made from: the files that launch/Containerfile copies, and no others."""
    folder = tmp_path / "image"
    for line in (ROOT / "launch" / "Containerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY "):
            *names, target = line.split()[1:]
            for name in names:
                source, into = ROOT / name, folder / target
                if source.is_dir():
                    shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, into)
    return folder


def test_the_image_is_made_as_people_are_told_to_install() -> None:
    lines = (ROOT / "launch" / "Containerfile").read_text(encoding="utf-8").splitlines()
    installs = [line for line in lines if line.startswith("RUN ")]
    assert len(installs) == 2 and all("--constraint constraints/python3.12.txt" in line for line in installs)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for accelerator in ("tpu", "cuda12"):  # which --build-arg ACCELERATOR names
        assert any(f"jax[{accelerator}]" in name for names in extras.values() for name in names)
    assert "gcs" in extras


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_no_module_is_left_out_of_the_repository() -> None:
    """A pattern of .gitignore may hit a folder of ours: all works here, and no clone does."""
    ignored = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "jaxformer", "experiments", "launch"]
    found = subprocess.run(ignored, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [name for name in found if name.endswith(".py")] == []


@pytest.mark.slow
def test_an_installed_wheel_trains_in_any_folder(tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, image_folder(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("jaxformer-*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", installed, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": xla_flags(1)}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = "import jaxformer.config, jaxformer.experiments as e; print(jaxformer.__file__, e.__file__)"
    where = run(sys.executable, "-c", f"{program}; jaxformer.config.load('bert:smoke')")
    assert all(Path(path).is_relative_to(installed) for path in where.split())
    command = str(installed / "bin" / "jaxformer")
    (elsewhere / "mine.py").write_text(OWN)
    run(command, "train", "--config=mine.py:smoke", *SHORT)
    assert read_metrics(elsewhere / "runs" / "mine-smoke")[-1]["step"] == 12
    run(command, "report", "runs/mine-smoke")
    assert (elsewhere / "report" / "report.html").exists()

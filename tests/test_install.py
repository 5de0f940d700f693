"""What users install: the wheel, away from this repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.run import read_metrics

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


@pytest.mark.slow
def test_an_installed_wheel_trains_in_any_folder(tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("jaxformer-*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", installed, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    del environment["XLA_FLAGS"]

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(
        sys.executable, "-c", "import jaxformer, jaxformer.experiments as e; print(jaxformer.__file__, e.__file__)"
    )
    assert all(Path(path).is_relative_to(installed) for path in where.split())
    command = str(installed / "bin" / "jaxformer")
    run(command, "train", "--config=bert:smoke", *SHORT)
    (elsewhere / "mine.py").write_text(OWN)
    run(command, "train", "--config=mine.py:smoke", *SHORT)
    for name in ("bert-smoke", "mine-smoke"):
        assert read_metrics(elsewhere / "runs" / name)[-1]["step"] == 12
    run(command, "report", "runs/bert-smoke", "runs/mine-smoke")
    assert (elsewhere / "report" / "report.html").exists()

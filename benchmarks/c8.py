"""C8: from the command to the first step, of bert:smoke and of GPT-2 124M on one row of 256 tokens.

The command is `jaxformer train`; the clock runs until the first step's line stands in metrics.jsonl. With nothing
cached the built-in corpus is collected, a tokenizer trained and the step compiled; then the same command runs again.
"""

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Case, Measure, Refused

GPT2 = (
    "gpt2:124m", "data.name=stdlib_docs", "objective.sequence_length=256", "training.batch_size=1",
    "tokenizer.vocab_size=4096", "evaluation.max_examples=8",
)  # fmt: skip


def started(command: list[str], workdir: Path, cache: Path) -> float:
    """Return the seconds until a training has logged its first step; it is ended then."""
    log, env = workdir / "metrics.jsonl", os.environ | {"JAXFORMER_CACHE": str(cache)}
    began = time.perf_counter()
    with open(workdir.with_suffix(".txt"), "w+b") as said:
        process = subprocess.Popen([*command, f"--workdir={workdir}"], env=env, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (log.exists() and b'"train/loss"' in log.read_bytes()):
                if process.poll() is not None:
                    said.seek(0)
                    raise Refused(f"training ended before its first step: {said.read().decode()[-300:]}")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


def ours(config: tuple[str, ...], folder: Path, number: int) -> dict[str, Any]:
    overrides = [f"--config.{override}" for override in ("training.log_every=1", *config[1:])]
    command = [sys.executable, "-m", "jaxformer", "train", f"--config={config[0]}", *overrides]
    own = Path(tempfile.mkdtemp(dir=folder))  # nothing is cached there, nor was by a measurement that was discarded
    seconds = {kind: [started(command, own / kind, own / "cache")] for kind in ("cold", "warm")}
    return {"figures": seconds, "command": " ".join(["jaxformer", *command[3:]])}


CASES = tuple(
    Case(
        name=name, what=what, sides={"ours": functools.partial(ours, config)}, memory="", rounds=1,
        measures=tuple(
            Measure(key=key, what=f"{what} to the first step, {said}", unit="s", most=most)
            for key, said, most in (("cold", "nothing cached", cold), ("warm", "again", warm))
        ),
    )
    for name, what, config, cold, warm in (
        ("c8-bert", "bert:smoke", ("bert:smoke",), 8.0, 3.0),
        ("c8-gpt2", "GPT-2 124M", GPT2, 12.0, 6.0),
    )
)  # fmt: skip

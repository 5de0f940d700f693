"""C9: whether data keeps up with training.

Tokenising with a WordPiece of 4096 ids, batches beside the step that needs them fastest (C1's), and the share of the
time that training waits for data.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from c1 import CASES as HUNGRIEST
from harness import Case, Measure, Refused

COPIES = 4  # of the built-in corpus
BATCHES, STEPS = 200, 60
TRAINED = ("bert:smoke", "gpt2:smoke")


def ours(folder: Path, number: int) -> dict[str, Any]:
    from jaxformer.devices import prepare_process

    prepare_process()
    own = Path(tempfile.mkdtemp(dir=folder))  # a measurement that was discarded left its own
    rate, batch = tokenising_and_batches(own)
    step = step_seconds()
    waits = [waiting(spec, own) for spec in TRAINED]
    return {
        "figures": {"tokenising": [rate], "batches": [step / batch], "waiting": [max(waits)]},
        "batch_seconds": batch,
        "step_seconds": step,
        "waits": dict(zip(TRAINED, waits, strict=True)),
    }


def tokenising_and_batches(folder: Path) -> tuple[float, float]:
    """Return the tokens a second of a corpus that becomes a token store, and the seconds that a batch of C1 takes."""
    from jaxformer import config as configs
    from jaxformer.data import Member, corpus_tokenizer, train_batches
    from jaxformer.data.rows import build_rows
    from jaxformer.data.stdlib_docs import documents
    from jaxformer.data.store import build_store

    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for copy in range(COPIES):
            corpus.writelines(json.dumps({"text": one["text"], "copy": copy}) + "\n" for one in documents("train"))
    data = ("data.name=json_lines", f"data.path={folder / 'corpus.jsonl'}", "data.text_field=text")
    config = configs.load("bert:smoke", data)
    tokenizer = corpus_tokenizer(config.tokenizer, config.data, config.supervision)
    began = time.perf_counter()
    store = build_store(config.data, "train", tokenizer, folder)
    rate = len(store.tokens) / (time.perf_counter() - began)

    spec, overrides = HUNGRIEST[0].sides["ours"].args[0]
    hungry = configs.load(spec, overrides)
    objective = hungry.supervision.bind(tokenizer.vocabulary)
    batches = train_batches(
        [Member(build_rows(store, objective, 0), objective)], seed=0, batch_size=hungry.training.batch_size
    )
    with contextlib.closing(batches):
        for _ in range(10):
            next(batches)
        began = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        return rate, (time.perf_counter() - began) / BATCHES


def step_seconds() -> float:
    """Return the median seconds of a step of C1."""
    from trainers import batch_of, learner_of

    learner = learner_of(HUNGRIEST[0].sides["ours"].args[0])
    state, phase, seconds = learner.last.make_state(learner.rngs[0]), learner.config.phases[-1], []
    batch = batch_of(learner.config, 0)
    for number in range(1, 61):
        began = time.perf_counter()
        state, metrics = learner.step(number, phase, state, batch)
        float(metrics["loss"])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[10:])


def waiting(spec: str, folder: Path) -> float:
    """Return the share of the step time that a training waits for data, of its last steps."""
    workdir = folder / spec.replace(":", "-")
    overrides = (f"training.num_steps={STEPS}", f"training.log_every={STEPS // 3}", "evaluation.max_examples=8")
    done = subprocess.run(
        [sys.executable, "-m", "jaxformer", "train", f"--config={spec}", f"--workdir={workdir}",
         *(f"--config.{override}" for override in overrides)],
        check=False, capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"training {spec} failed: {done.stderr.strip()[-200:]}")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/data_wait_seconds" in line)
    return float(last["train/data_wait_seconds"] / last["train/step_seconds"])


CASES = (
    Case(
        name="c9", what="data", sides={"ours": ours}, memory="", rounds=1,
        measures=(
            Measure(key="tokenising", what="tokenising, WordPiece of 4096", unit="M tokens/s", least=1.5),
            Measure(key="batches", what="batches beside C1's step", unit="times", least=20),
            Measure(key="waiting", what=f"waiting for data, {' and '.join(TRAINED)}", unit="%", most=1),
        ),
    ),
)  # fmt: skip

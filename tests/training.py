"""Tiny trainings that several test files run as whole processes."""

import functools
import json
import random
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxformer
from jaxformer.storage import read_metrics
from jaxformer.trees import flatten

FAMILIES = ("gpt", "bert", "t5")
SIZES = {"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_layers": 2, "max_length": 32, "vocab_size": 420}
TOPICS = {"animals": "cat dog horse bird fish sheep", "numbers": "one two three four five six seven"}
# Numbers that differ from run to run.
TIMES = (
    "train/seconds", "train/step_seconds", "train/tokens_per_second", "train/data_wait_seconds",
    "train/checkpoint_wait_seconds", "train/goodput",
)  # fmt: skip


def make_corpus(folder: Path) -> Path:
    """Fill a folder with documents (text) and labelled sentences (JSON lines), each sentence about one topic."""
    draw = random.Random(0)
    documents, examples = [], []
    for _ in range(240):
        topic = draw.choice(sorted(TOPICS))
        words = TOPICS[topic].split()
        sentences = [f"The {draw.choice(words)} and the {draw.choice(words)} came." for _ in range(draw.randint(2, 7))]
        documents.append(" ".join([*sentences, f"These are {topic}."]))
        examples.append({"text": sentences[0], "label": topic})
    (folder / "documents.txt").write_text("\n\n".join(documents))
    (folder / "labelled.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return folder


def shorten_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the built-in corpus of a quarter of the standard library's files, with a cache of its own in `folder`, until
    the test ends: tokenizers and stores of all of it take longer than tests of commands need."""
    from jaxformer.data import stdlib_docs  # imports TFDS

    library = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    for path in (*found[::4], library / "pydoc_data" / "topics.py"):
        copy = folder / "library" / path.relative_to(library)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            copy.symlink_to(path)
    shortened = SimpleNamespace(get_paths=lambda: {"stdlib": str(folder / "library")})
    monkeypatch.setattr(stdlib_docs, "sysconfig", shortened)
    monkeypatch.setattr(stdlib_docs, "modules", functools.cache(stdlib_docs.modules.__wrapped__))
    monkeypatch.setenv("JAXFORMER_CACHE", str(folder / "cache"))


def pretraining(family: str, corpus: Path, workdir: Path, **overrides: object) -> list[str]:
    """The arguments of a tiny pretraining run, dropout on."""
    keys: dict[str, object] = {f"model.{name}": size for name, size in SIZES.items()}
    keys |= {"model.dropout": 0.1, "tokenizer.vocab_size": 420, "objective.sequence_length": 24}
    keys |= {"data.name": "text", "data.path": corpus / "documents.txt"}
    keys |= {"training.num_steps": 40, "training.batch_size": 8, "training.log_every": 1, "training.eval_every": 100}
    keys |= {"checkpoint.every": 20, "optimizer.warmup_steps": 5, "evaluation.max_examples": 16}
    keys |= {"objective.max_predictions": 4} if family == "bert" else {}
    return arguments("train", f"{family}:smoke", workdir, keys | overrides)


def fine_tuning(family: str, corpus: Path, workdir: Path, base: Path, **overrides: object) -> list[str]:
    keys: dict[str, object] = {f"model.{name}": size for name, size in SIZES.items()}
    keys |= {"init_from": base, "task.sequence_length": 24}
    keys |= {"data.name": "json_lines", "data.path": corpus / "labelled.jsonl", "data.label_field": "label"}
    keys |= {"training.num_steps": 100, "training.batch_size": 8, "training.eval_every": 0, "checkpoint.every": 0}
    keys |= {"optimizer.warmup_steps": 0, "optimizer.schedule": "constant", "optimizer.learning_rate": 0.01}
    # So small a classifier hardly moves the body while the language model pulls at it.
    keys |= {"task.language_model_weight": 0.1} if family == "gpt" else {}
    keys |= {"footprint.enabled": False, "sharding.data": 1}
    return arguments("train", f"finetune/area:{family},smoke", workdir, keys | overrides)


def arguments(verb: str, config: str, workdir: Path, keys: dict[str, object]) -> list[str]:
    return [verb, f"--config={config}", f"--workdir={workdir}", *(f"--config.{key}={keys[key]}" for key in keys)]


def logged(workdir: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(workdir)]


def params(workdir: str | Path) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(jaxformer.load(workdir).params).items()}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Every logged value but times, and every parameter, to the last bit."""
    assert logged(ours) == logged(theirs)
    mine, expected = params(ours), params(theirs)
    assert mine.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)

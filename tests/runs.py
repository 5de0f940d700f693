"""Small run directories of every system, with random weights: made without training."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxformer import config as configs
from jaxformer.checkpoint import read_params_in_groups, save_params, stored_shapes
from jaxformer.runs.loading import bind, build_model
from jaxformer.runs.record import write_record
from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, train_tokenizer

LABELS = ("concurrency", "data", "files")
LABELS_OF = {"class": LABELS, "classes": LABELS, "tags": ("B-part", "I-part", "O")}
_TEXT = [
    "Return the number of items in the queue.", "Open the file and read every line of it, one at a time.",
    "A thread may wait until another thread has released the lock.", "Parse the text, then print what was found.",
] * 5  # fmt: skip
_TOKENIZERS = {
    "bpe": ByteBPE(vocab_size=290), "wordpiece": WordPiece(vocab_size=100),
    "unigram": Unigram(vocab_size=90, num_sentinels=20), "plain": Unigram(vocab_size=70, num_sentinels=0),
    "bart": ByteBPE(vocab_size=300, special="bart"),
}  # fmt: skip
_SIZES = {"d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8, "num_layers": 3, "max_length": 64}
_CAUSAL = {"objective": {"name": "causal_lm", "sequence_length": 32}}
_MASKED = {"objective": {"name": "masked_lm", "sequence_length": 32, "max_predictions": 5, "next_sentence": False}}
_WRITES = {"task": {"name": "text_to_text", "sequence_length": 32, "target_length": 16}}
_SPANS = {"objective": {"name": "span_corruption", "sequence_length": 32}}
_LABEL = {"task": {"name": "classification", "sequence_length": 32}}
_EXTRACT = {"task": _LABEL["task"] | {"language_model_weight": 0.5}}


def _task(name: str, **settings: Any) -> dict[str, Any]:
    return {"task": {"name": name, "sequence_length": 32, **settings}}


_ASKED = {"max_query_length": 8, "doc_stride": 5}

# Name -> (preset, tokenizer, slots, the objective or task). Every head that can be exported, for every system.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "transformer": ("transformer_base", "plain", {}, _WRITES),
    "gpt": ("gpt", "bpe", {"d_ff": 64}, _CAUSAL),
    "gpt_label": ("gpt", "bpe", {"d_ff": 64}, _EXTRACT),
    "bert": ("bert_base", "wordpiece", {}, {"objective": _MASKED["objective"] | {"next_sentence": True}}),
    "bert_masked": ("bert_base", "wordpiece", {}, _MASKED),
    "bert_label": ("bert_base", "wordpiece", {}, _LABEL),
    "gpt2": ("gpt2_124m", "bpe", {}, _CAUSAL),
    "gpt2_label": ("gpt2_124m", "bpe", {}, {"task": _EXTRACT["task"] | {"special_tokens": False}}),
    "distilbert": ("distilbert_base", "wordpiece", {}, _MASKED),
    "distilbert_label": (
        "distilbert_base", "wordpiece", {}, _LABEL,
    ),
    "bart": ("bart_base", "plain", {}, _WRITES),
    "bart_label": ("bart_base", "plain", {}, _LABEL),
    "t5": ("t5_base", "unigram", {"num_heads": 3}, _SPANS),
    "t5_label": ("t5_base", "unigram", {"num_heads": 3}, _LABEL),
    "t5_1_1": ("t5_1_1_base", "unigram", {}, _SPANS),
    "t5_1_1_label": ("t5_1_1_base", "unigram", {}, _LABEL),
    "gpt3": ("gpt3_125m", "bpe", {"attention_pattern": "dense"}, _CAUSAL),
}  # fmt: skip

# The other heads that can be exported.
CASES |= {
    "bert_classes": ("bert_base", "wordpiece", {}, _task("multi_label", threshold=0.3)),
    "bert_number": ("bert_base", "wordpiece", {}, _task("regression", text_fields=("one", "other"))),
    "bert_choices": ("bert_base", "wordpiece", {}, _task("multiple_choice", choice_fields=("a", "b", "c"))),
    "distilbert_choices": ("distilbert_base", "wordpiece", {}, _task("multiple_choice", text_fields=("context",))),
    "gpt_choices": ("gpt", "bpe", {"d_ff": 64}, _task("multiple_choice", language_model_weight=0.5)),
    "gpt2_number": ("gpt2_124m", "bpe", {}, _task("regression")),
    "gpt2_choices": ("gpt2_124m", "bpe", {"head_bias": True}, _task("multiple_choice", choice_fields=("a", "b"))),
    "bart_classes": ("bart_base", "plain", {}, _task("multi_label", head_dropout=0.0)),
    "bert_tags": ("bert_base", "wordpiece", {}, _task("token_classification", text_fields="words")),
    "distilbert_tags": ("distilbert_base", "wordpiece", {}, _task("token_classification", head_dropout=0.2)),
    "gpt2_tags": ("gpt2_124m", "bpe", {}, _task("token_classification")),
    "bert_span": ("bert_base", "wordpiece", {}, _task("question_answering", **_ASKED, null_threshold=None)),
    "distilbert_span": ("distilbert_base", "wordpiece", {}, _task("question_answering", **_ASKED, n_best=3)),
    "gpt2_span": ("gpt2_124m", "bpe", {}, _task("question_answering", **_ASKED)),
    "bart_span": ("bart_base", "plain", {}, _task("question_answering", **_ASKED)),
    "t5_span": ("t5_base", "unigram", {"num_heads": 3}, _task("question_answering", **_ASKED)),
}  # fmt: skip


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    return train_tokenizer(_TOKENIZERS[kind], _TEXT)


def make_run(
    name: str, workdir: Path, task: dict[str, Any] | None = None, labels: tuple[str, ...] | None = None, **slots: Any
) -> Path:
    """Write the run directory of a case, its parameters random and all different; return it. `task` changes settings
    of its task, `slots` those of its model."""
    preset, kind, own, supervised = CASES[name]
    if task:
        supervised = {"task": supervised["task"] | task}
    tokenizer = tokenizer_of(kind)
    model = {"preset": preset, **_SIZES, "vocab_size": tokenizer.vocab_size, **own, **slots}
    sections = {
        "seed": 0, "init_from": "", "model": model, "tokenizer": {"name": "file", "path": "tokenizer.json"},
        "data": {"name": "stdlib_docs"}, "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "training": {"num_steps": 1, "batch_size": 8}, "sharding": {}, "checkpoint": {}, "evaluation": {},
        "generation": {"max_new_tokens": 8}, "footprint": {"enabled": False}, **supervised,
    }  # fmt: skip
    config = configs.resolve(sections, name=name)
    if labels is None:
        labels = LABELS_OF.get(config.supervision.label_kind, ())
    built = build_model(config, bind(config, tokenizer, labels))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.5, 0.3, leaf.shape).astype(np.float32), built.shapes)
    workdir.mkdir(parents=True)
    tokenizer.save(workdir / "tokenizer.json")
    save_params(workdir / "checkpoints", params, step=7)
    write_record(workdir, config, labels, 0, read={"fingerprints": {"data": {}, "tokenizer": tokenizer.fingerprint}})
    return workdir


def params_of(run: Path) -> dict[str, np.ndarray]:
    ((_, arrays),) = read_params_in_groups(run, [tuple(stored_shapes(run))])
    return arrays


def changed(out: Path, folder: Path, **changes: Any) -> Path:
    """Copy an export; `tensors` changes its weights, `config` its config.json, None deletes."""
    folder.mkdir()
    for file in out.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, update in changes.items():
        if name == "tensors":
            content = load_file(folder / "model.safetensors") | update
            save_file({key: value for key, value in content.items() if value is not None}, folder / "model.safetensors")
        else:
            content = json.loads((folder / "config.json").read_text()) | update
            kept = {key: value for key, value in content.items() if value is not None}
            (folder / "config.json").write_text(json.dumps(kept))
    return folder

"""The same fine-tuning twice, of a model that `transformers` made: with ours after an import, and with torch."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from labelled import example_of
from runs import tokenizer_of

import jaxformer
from jaxformer import config as configs
from jaxformer.interop import import_run
from jaxformer.runs.loading import bind, build_model
from jaxformer.training.optimizers import OPTIMIZERS, make_optimizer
from jaxformer.training.step import TrainState, losses_of, make_train_step

STEPS, ROWS, LENGTH = 20, 8, 24
RATE, DECAY, EPSILON = 3e-3, 0.1, 1e-6
LABELS = ("concurrency", "data", "files")
TAGS = ("B-part", "I-part", "O")
WORDS = "the number of items in queue open file read every line thread may wait until another has released lock".split()

Batch = dict[str, np.ndarray]


class Case(NamedTuple):
    """A class of theirs, its tokenizer (of tests/runs.py), what its config says beside the sizes, the settings of the
    task, an example's fields and label, and what the class takes as its labels."""

    name: str
    tokenizer: str
    config: dict[str, Any]
    task: dict[str, Any]
    example: Callable[[random.Random], tuple[dict[str, Any], Any]]
    labels: Callable[[Batch], dict[str, np.ndarray]]


def _words(draw: random.Random, least: int = 3, most: int = 12) -> list[str]:
    return draw.choices(WORDS, k=draw.randint(least, most))


def _text(draw: random.Random) -> dict[str, Any]:
    return {"text": " ".join(_words(draw))}


def _pair(draw: random.Random) -> dict[str, Any]:
    return {"one": " ".join(_words(draw)), "other": " ".join(_words(draw))}


def _choices(draw: random.Random) -> tuple[dict[str, Any], int]:
    fields = ("context", *(f"ending{n}" for n in range(4)))
    return {field: " ".join(_words(draw, most=8)) for field in fields}, draw.randrange(4)


def _tagged(draw: random.Random) -> tuple[dict[str, Any], list[int]]:
    words = _words(draw)
    return {"text": words}, [draw.randrange(len(TAGS)) for _ in words]


def _asked(draw: random.Random) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The context fills the row: their loss also runs over padding, which stands at other positions there."""
    words = _words(draw, 40, 40)
    at = draw.randrange(8)
    context = " ".join(words)
    start = len(" ".join(words[:at])) + (at > 0)
    return {"question": " ".join(_words(draw, 4, 4)), "context": context}, {
        "text": [words[at]], "answer_start": [start]
    }  # fmt: skip


def _targets(batch: Batch) -> dict[str, np.ndarray]:
    """What most classes take: those of a label, or of each token that counts."""
    return {"labels": np.where(batch["label_weights"] > 0, batch["label_targets"], -100)}


def _floats(batch: Batch) -> dict[str, np.ndarray]:
    return {"labels": batch["label_targets"].astype(np.float32)}


def _places(batch: Batch) -> dict[str, np.ndarray]:
    return {f"{head}_positions": batch[f"{head}_targets"] for head in ("start", "end")}


def _written(batch: Batch) -> dict[str, np.ndarray]:
    return {"labels": np.where(batch["weights"] > 0, batch["targets"], -100)}


_NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {label: n for n, label in enumerate(LABELS)}}
_TAGGED = {"id2label": dict(enumerate(TAGS)), "label2id": {label: n for n, label in enumerate(TAGS)}}
_SQUAD = {"max_query_length": 6}
CASES = {
    "classification": Case(
        "BertForSequenceClassification", "wordpiece", _NAMED, {},
        lambda draw: (_text(draw), draw.randrange(3)), _targets,
    ),
    "classification_gpt2": Case(
        "GPT2ForSequenceClassification", "bpe", _NAMED, {"special_tokens": False},
        lambda draw: (_text(draw), draw.randrange(3)), _targets,
    ),
    "classification_bart": Case(
        "BartForSequenceClassification", "plain", _NAMED, {"text_fields": ("one", "other")},
        lambda draw: (_pair(draw), draw.randrange(3)), _targets,
    ),
    "several_labels": Case(
        "DistilBertForSequenceClassification", "wordpiece", _NAMED | {"problem_type": "multi_label_classification"}, {},
        lambda draw: (_text(draw), [n for n in range(3) if draw.random() < 0.4]), _floats,
    ),
    "regression": Case(
        "BertForSequenceClassification", "wordpiece", {"num_labels": 1}, {"text_fields": ("one", "other")},
        lambda draw: (_pair(draw), draw.uniform(0, 5)), _floats,
    ),
    "choices": Case("BertForMultipleChoice", "wordpiece", {}, {}, _choices, _targets),
    "tags": Case("BertForTokenClassification", "wordpiece", _TAGGED, {}, _tagged, _targets),
    "answers": Case("BertForQuestionAnswering", "wordpiece", {}, _SQUAD, _asked, _places),
    "answers_bart": Case("BartForQuestionAnswering", "plain", {}, _SQUAD, _asked, _places),
    "text_to_text": Case(
        "T5ForConditionalGeneration", "unigram", {},
        {"name": "text_to_text", "input": "area: {text}", "target_length": 12},
        lambda draw: (_text(draw), draw.randrange(3)), _written,
    ),
}  # fmt: skip


def their_model(case: Case, folder: Path) -> Any:
    """Write the folder of a tiny model of theirs, without dropout; return the model."""
    words = tokenizer_of(case.tokenizer)
    special, kind = words.vocabulary.special, getattr(transformers, case.name).config_class
    ids = {f"{name}_token_id": special.get(role) for name, role in (("pad", "pad"), ("bos", "start"), ("eos", "end"))}
    sizes = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LENGTH},
        "bart": {"d_model": 16, **{f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in
                 (("layers", 2), ("ffn_dim", 24), ("attention_heads", 2))}},
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    }[kind.model_type]  # fmt: skip
    if kind.model_type in ("bart", "t5"):
        ids["decoder_start_token_id"] = special["end" if kind.model_type == "bart" else "pad"]
    length = {"max_position_embeddings": LENGTH} if kind.model_type not in ("gpt2", "t5") else {}
    config = kind(vocab_size=words.vocab_size, **sizes, **length, **ids, **case.config)
    for key, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    model = getattr(transformers, case.name)(config).float().train()
    with torch.no_grad():  # enough for gradients that matter
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * (1.0 if "shared" in path or "wte" in path else 0.2))
    model.save_pretrained(folder)
    words.save(folder / "tokenizer.json")
    return model


def imported(case: Case, folder: Path, workdir: Path) -> tuple[Any, Any, Any]:
    """Import a folder of theirs; return (task, model, parameters), the task with the case's settings."""
    import_run(str(folder), workdir)
    run = jaxformer.load(workdir)
    sections = json.loads((workdir / "config.json").read_text())["config"]
    sections["task"] = sections.get("task", {}) | {"sequence_length": LENGTH} | case.task
    sections.pop("objective", None)  # of a model that writes: the case says what
    sections["training"] = sections.get("training", {}) | {"unroll_layers": 1}  # which compiles fastest
    config = configs.resolve(sections, name="tuned")
    task = bind(config, run.tokenizer, run.labels or (LABELS if config.supervision.decodes else ()))
    return task, build_model(config, task), run.params


def batches(case: Case, task: Any) -> list[Batch]:
    """Return the arrays of every step."""
    draw, words = random.Random(0), tokenizer_of(case.tokenizer)

    def row() -> Batch:
        fields, label = case.example(draw)
        return task(example_of(words, label, **fields), np.random.default_rng(0))

    rows = [[row() for _ in range(ROWS)] for _ in range(STEPS)]
    return [{name: np.stack([one[name] for one in some]) for name in some[0]} for some in rows]


def their_labels(case: Case, batch: Batch) -> dict[str, Any]:
    tensors = {key: torch.from_numpy(array) for key, array in case.labels(batch).items()}
    return {key: tensor if tensor.is_floating_point() else tensor.long() for key, tensor in tensors.items()}


def our_losses(task: Any, model: Any, params: Any, arrays: list[Batch]) -> list[float]:
    adamw = OPTIMIZERS["adamw"](
        learning_rate=RATE, weight_decay=DECAY, decay_exclude=(), epsilon=EPSILON, beta1=0.9, beta2=0.999, clip_norm=0.0
    )
    optimizer = make_optimizer(adamw, model.shapes)
    step = jax.jit(make_train_step(model, losses_of(task), optimizer))
    params = jax.tree.map(jnp.asarray, params)
    state, found = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), []
    for batch in arrays:
        state, metrics = step(state, batch, jax.random.key(0), RATE)
        found.append(float(metrics["loss"]))
    return found


def their_losses(model: Any, inputs: list[dict[str, Any]]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, eps=EPSILON)
    found = []
    for given in inputs:
        optimizer.zero_grad()
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found

"""How good a model is on held-out rows: loss, perplexity, token accuracy, and a task's own metrics."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.checkpoint import ROOTS
from jaxformer.checks import check_choice, check_range
from jaxformer.devices import gathered
from jaxformer.errors import UserError
from jaxformer.generation import (
    GenerationConfig,
    TokenRules,
    choice_table,
    decoding_weights,
    generate,
    stop_table,
)
from jaxformer.models import Model, Params
from jaxformer.objectives import Example, Supervision
from jaxformer.tasks import intervals, measure
from jaxformer.tokenizers import Tokenizer

HostBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """During training `max_examples` rows (0: all) of `split` are judged, `batch_size` at a time (0: a micro-batch).

    `parameters` are those that were "trained", or "ema", their moving average (training.ema_decay): what is judged, and
    what is read of a checkpoint afterwards where nothing else is said.
    """

    max_examples: int = 0
    batch_size: int = 0
    split: str = "validation"
    parameters: str = "trained"

    def __post_init__(self) -> None:
        check_choice("evaluation.split", self.split, ("validation", "test"))
        check_choice("evaluation.parameters", self.parameters, ROOTS)
        for key in ("max_examples", "batch_size"):
            check_range(f"evaluation.{key}", getattr(self, key), at_least=0)


class Evaluation(NamedTuple):
    """What was found on held-out rows: metrics and, of a task, the answers to its examples, with what is true of each
    and what each answer says, as the metrics take them."""

    metrics: dict[str, float]
    answers: Sequence[dict[str, Any]] = ()
    truths: Sequence[Any] = ()
    guesses: Sequence[Any] = ()


def evaluate(
    model: Model,
    supervision: Supervision,
    eval_step: Callable[..., Any],
    params: Params,
    batches: Iterable[HostBatch],
    *,
    place: Callable[[HostBatch], Any],
    tokenizer: Tokenizer,
    rows: Sequence[Example] = (),
    generation: GenerationConfig | None = None,
) -> Evaluation:
    """Return what is found over all batches: exact means, whatever the batching or padding.

    "loss" is the training loss without dropout; "perplexity" and "token_accuracy" belong to predicted tokens;
    "HEAD_loss" and "HEAD_accuracy" to further heads; a task adds the metrics it names, judged from the answers that it
    reads from its heads or, of a text-to-text task, from the text that the model writes, as `generation` says (which
    may leave open how long it is: as a target at most). `rows` are those that the batches were made of, in their order,
    which a task reads.
    """
    totals: dict[str, np.ndarray] = {}
    task, found = supervision.answering, list[Any]()
    weights = decoding_weights(model, params) if task is not None and supervision.decodes else params
    for batch in batches:
        placed = place(batch)
        sums, predictions = eval_step(params, placed)
        for name, values in sums.items():
            totals[name] = totals.get(name, np.zeros(3)) + np.array([float(value) for value in values])
        if task is not None:
            outputs = outputs_of(
                model, supervision, weights, {name: placed[name] for name in batch}, predictions, tokenizer, generation
            )
            count = min(len(next(iter(outputs.values()))), len(rows) - len(found))
            real = {name: values[:count] for name, values in outputs.items()}
            found += task.read(real, rows[len(found) : len(found) + count])
    metrics = _means(supervision, totals)
    if task is None or not metrics:
        return Evaluation(metrics)
    answers, truths = task.answers(rows, found), task.truths(rows)
    guesses = task.guesses(answers)
    judged = measure(supervision.metrics, truths, guesses, len(supervision.labels), supervision.labels)
    if math.isfinite(metrics["loss"]):  # then what is none is not defined here: nothing is said of it
        judged = {name: value for name, value in judged.items() if math.isfinite(value)}
    return Evaluation(metrics | judged | task.tuned(answers, truths), answers, truths, guesses)


def confidence(supervision: Supervision, found: Evaluation, seed: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % bootstrap interval (low, high) of each metric of a task that was found; {} for an objective."""
    names = [name for name in supervision.metrics if name in found.metrics]
    labels = supervision.labels
    return intervals(names, found.truths, found.guesses, len(labels), labels, seed=seed)


def outputs_of(
    model: Model, supervision: Supervision, weights: Params, placed: Mapping[str, Any], predictions: Mapping[str, Any],
    tokenizer: Tokenizer, generation: GenerationConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what a task reads of a batch: the logits of its heads, [B, …], or the texts "written", with `weights` that
    are `decoding_weights(model, params)`."""
    if supervision.decodes:
        whole = {name: gathered(array) for name, array in placed.items()}  # every process writes every answer
        length = supervision.answering.target_length if supervision.answering is not None else 0
        return {"written": _written(model, weights, whole, tokenizer, generation or GenerationConfig(), length)}
    return {head: np.asarray(gathered(predictions[head]), np.float32) for head in supervision.heads}


def _means(supervision: Supervision, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the means of the sums (loss, correct, count) of every group."""
    # A group without predictions has no loss: nothing is said of it rather than 0.
    means = {name: (loss / count, right / count) for name, (loss, right, count) in totals.items() if count > 0}
    if not means:
        return {}
    metrics = {"loss": sum(supervision.coefficients[name] * loss for name, (loss, _) in means.items())}
    for name, (loss, accuracy) in means.items():
        if name == "tokens":
            # A large loss has a perplexity that no float holds; one that is not finite has none.
            perplexity = math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan
            metrics |= {"perplexity": perplexity, "token_accuracy": accuracy}
        elif name != "label":
            metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    return metrics


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are no finite numbers."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def combined(parts: Sequence[tuple[str, float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the metrics of a mixture's members, given as (name, share, metrics): those of a single one as they are; of
    several every "NAME/metric", and of those that all have the mean by share (of perplexities, as of their losses)."""
    if len(parts) == 1:
        return dict(parts[0][2])
    judged = [part for part in parts if part[2]]
    shares = np.array([share for _, share, _ in judged])
    metrics = {}
    for key in judged[0][2] if judged else ():
        if all(key in found for _, _, found in judged):
            values = np.array([found[key] for _, _, found in judged])
            geometric = key == "perplexity"
            mean = np.average(np.log(values) if geometric else values, weights=shares)
            metrics[key] = float(np.exp(mean) if geometric else mean)
    return metrics | {f"{name}/{key}": value for name, _, found in judged for key, value in found.items()}


def token_rules(model: Model, tokenizer: Tokenizer, config: GenerationConfig) -> TokenRules:
    """Return what a tokenizer says about writing. Raises UserError for a choice that it cannot spell."""
    vocabulary = tokenizer.vocabulary
    end_id = vocabulary.special.get("end", -1)  # GPT's own vocabulary has no end: it writes on
    start_id = vocabulary.id(model.config.decoder_start) if model.config.family == "encoder_decoder" else 0
    spelled = [tokenizer.encode(choice) for choice in config.choices]
    for choice, ids in zip(config.choices, spelled, strict=True):
        if not len(ids) or not tokenizer.writable[ids].all() or vocabulary.special.get("unknown", -1) in ids:
            raise UserError(f"generation.choices: the tokenizer has no tokens for {choice!r}")
    return TokenRules(
        end_id,
        start_id,
        tokenizer.writable,
        stop_table(config.stop, tokenizer.pieces) if config.stop else None,
        choice_table(spelled, tokenizer.vocab_size, end_id) if spelled else None,
    )


def before_stops(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _written(
    model: Model, weights: Params, batch: HostBatch, tokenizer: Tokenizer, generation: GenerationConfig,
    target_length: int,
) -> list[str]:  # fmt: skip
    """Return the text that the model writes for each row of a batch: the best one, of several."""
    # Every row is generated, padding too, so that all batches have one shape.
    if model.config.family == "decoder_only":
        prompts = [row[:length] for row, length in zip(batch["inputs"], batch["prefix_length"], strict=True)]
        width = batch["inputs"].shape[1] - target_length + 1
    else:
        rows = zip(batch["encoder_inputs"], batch["encoder_segment_ids"], strict=True)
        prompts = [inputs[segments > 0] for inputs, segments in rows]
        target_length, width = max(target_length, batch["targets"].shape[1]), batch["encoder_inputs"].shape[1]
    config = dataclasses.replace(generation, max_new_tokens=generation.max_new_tokens or target_length)
    answers = generate(model, weights, prompts, config, token_rules(model, tokenizer, config), min_width=width)
    return [before_stops(tokenizer.decode(best[0].ids), config.stop).strip() if best else "" for best in answers]

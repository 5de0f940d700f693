"""How good a model is on held-out rows: loss, perplexity, token accuracy, and a task's own metrics."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.devices import gathered
from jaxformer.generation import GenerationConfig, generate
from jaxformer.models import Model, Params
from jaxformer.objectives import Supervision
from jaxformer.tasks import task_metrics
from jaxformer.tokenizers import Tokenizer

HostBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """During training `max_examples` rows (0: all) of `split` are judged, `batch_size` at a time (0: a micro-batch)."""

    max_examples: int = 0
    batch_size: int = 0
    split: str = "validation"

    def __post_init__(self) -> None:
        check_choice("evaluation.split", self.split, ("validation", "test"))
        for key in ("max_examples", "batch_size"):
            check_range(f"evaluation.{key}", getattr(self, key), at_least=0)


def evaluate(
    model: Model,
    supervision: Supervision,
    eval_step: Callable[..., Any],
    params: Params,
    batches: Iterable[HostBatch],
    *,
    place: Callable[[HostBatch], Any],
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """Return metrics over all batches: exact means, whatever the batching or padding.

    "loss" is the training loss without dropout; "perplexity" and "token_accuracy" belong to predicted tokens;
    "HEAD_loss" and "HEAD_accuracy" to further heads; a task adds the metrics it names, judged from the classes that its
    head predicts or, for a text-to-text task, from the text that the model writes.
    """
    totals: dict[str, np.ndarray] = {}
    truth: list[np.ndarray] = []
    guesses: list[np.ndarray] = []
    for batch in batches:
        placed = place(batch)
        sums, predictions = eval_step(params, placed)
        for name, values in sums.items():
            totals[name] = totals.get(name, np.zeros(3)) + np.array([float(value) for value in values])
        if supervision.decodes:
            whole = {name: gathered(placed[name]) for name in batch}  # every process writes every answer
            true, guess = _written(model, params, whole, tokenizer, labels)
            truth.append(true)
            guesses.append(guess)
        elif "label" in predictions:
            real = gathered(placed["label_weights"]) > 0
            truth.append(gathered(placed["label_targets"])[real])
            guesses.append(gathered(predictions["label"])[real])
    if not totals:
        return {}
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
    if truth:
        metrics |= task_metrics(supervision.metrics, np.concatenate(truth), np.concatenate(guesses), len(labels))
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


def _written(
    model: Model, params: Params, batch: HostBatch, tokenizer: Tokenizer, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return true and written classes of the batch's real rows; -1 where the model wrote no label's text."""
    real = batch["weights"].sum(axis=1) > 0
    end_id = tokenizer.vocabulary.id("end")
    rows = zip(batch["encoder_inputs"], batch["encoder_segment_ids"], strict=True)
    # Every row is generated, padding too, so that all batches have one shape.
    answers = generate(
        model,
        params,
        [inputs[segments > 0] for inputs, segments in rows],
        GenerationConfig(max_new_tokens=batch["targets"].shape[1]),
        end_id=end_id,
        start_id=tokenizer.vocabulary.id(model.config.decoder_start),
        min_width=batch["encoder_inputs"].shape[1],
        writable=tokenizer.writable,
    )
    # As the tokenizer writes them: it may have normalised case or spaces.
    classes = {tokenizer.decode(tokenizer.encode(label)).strip(): number for number, label in enumerate(labels)}
    wanted = zip(batch["targets"], batch["weights"], strict=True)
    true_ids = [targets[(weights > 0) & (targets != end_id)] for targets, weights in wanted]
    texts = [[tokenizer.decode(ids).strip() for ids in rows] for rows in (true_ids, answers)]
    true, guess = (np.array([classes.get(text, -1) for text in column]) for column in texts)
    return true[real], guess[real]

"""How good a model is.

What lives here: loss, perplexity, token accuracy and a task's own metrics over held-out batches (`held_out`).
What may come in: scoring of texts and choices, zero- and few-shot evaluation.
What must not: run directories: what is judged comes as a model, parameters and batches."""

from jaxformer.evaluation.held_out import (
    Evaluation,
    EvaluationConfig,
    before_stops,
    combined,
    confidence,
    evaluate,
    not_finite,
    outputs_of,
    token_rules,
)

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "before_stops",
    "combined",
    "confidence",
    "evaluate",
    "not_finite",
    "outputs_of",
    "token_rules",
]

"""How good a model is.

What lives here: loss, perplexity, token accuracy and a task's own metrics over held-out batches (`held_out`); how
likely tokens are that are given (`scoring`).
What may come in: zero- and few-shot evaluation.
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
from jaxformer.evaluation.scoring import Query, TokenScores, continuation, masked, rolling, token_scores

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Query",
    "TokenScores",
    "before_stops",
    "combined",
    "confidence",
    "continuation",
    "evaluate",
    "masked",
    "not_finite",
    "outputs_of",
    "rolling",
    "token_rules",
    "token_scores",
]

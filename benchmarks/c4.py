"""C4: a training step of BERT-base's masked language model, 8 rows of 128 tokens, against transformers.

They project all places to the vocabulary, we the 20 of a row that are predicted.
"""

from typing import Any

from trainers import from_transformers, training


def reference() -> Any:
    import transformers

    config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForMaskedLM(config)


def run(model: Any, batch: Any) -> Any:
    import torch
    from torch.nn import functional

    logits = model(input_ids=batch["inputs"]).logits
    labels = torch.full_like(batch["inputs"], -100).scatter_(1, batch["predict_positions"], batch["targets"])
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


CASES = (
    training(
        "c4", "BERT-base, masked words, 8 × 128, against transformers", 1.25, spec="bert:base", rows=8,
        reference=reference, rate=2e-5,  # of more, BERT without warm-up makes rounding grow
        overrides=("objective.sequence_length=128", "objective.max_predictions=20", "objective.next_sentence=False"),
        rivals={"transformers": from_transformers("BertForMaskedLM", run, attn_implementation="sdpa")},
    ),
)  # fmt: skip

"""C5: a training step of T5-small, 2 rows of 512 tokens read and 114 written, against transformers."""

from typing import Any

from trainers import from_transformers, training


def reference() -> Any:
    import transformers

    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32_128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def run(model: Any, batch: Any) -> Any:
    from torch.nn import functional

    logits = model(input_ids=batch["encoder_inputs"], decoder_input_ids=batch["inputs"], use_cache=False).logits
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), batch["targets"].reshape(-1))


CASES = (
    training(
        "c5", "T5-small, 2 × (512 + 114), against transformers", 1.05, spec="t5:60m", rows=2, reference=reference,
        overrides=("objective.z_loss=0",),
        rivals={"transformers": from_transformers("T5ForConditionalGeneration", run)},
    ),
)  # fmt: skip

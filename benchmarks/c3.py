"""C3: a training step of GPT-2 124M, one row of 256 tokens, against transformers and plain PyTorch."""

from typing import Any

from nanogpt import gpt2_training
from trainers import from_transformers


def run(model: Any, batch: Any) -> Any:
    from torch.nn import functional

    logits = model(input_ids=batch["inputs"], use_cache=False).logits
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), batch["targets"].reshape(-1))


CASES = (
    gpt2_training(
        "c3", "GPT-2 124M, 1 × 256, against transformers and plain PyTorch", 1.1,
        layers=12, width=768, heads=12, length=256, rows=1, ids=50_257, compiled=False,
        rivals={"transformers": from_transformers(
            "GPT2LMHeadModel", run, attn_implementation="sdpa", activation_function="gelu_pytorch_tanh"
        )},
    ),
)  # fmt: skip

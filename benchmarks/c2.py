"""C2: a training step of a GPT (6 layers of width 384, 8 rows of 256 tokens, 8192 ids) against plain PyTorch."""

from nanogpt import gpt2_training

CASES = (
    gpt2_training(
        "c2", "GPT 6 layers, width 384, 8 × 256, against plain PyTorch", 1.0,
        layers=6, width=384, heads=6, length=256, rows=8, ids=8192,
    ),
)  # fmt: skip

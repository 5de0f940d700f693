"""C1: a training step of nanoGPT's demo (4 layers of width 128, 12 rows of 64 tokens, 65 ids) against plain PyTorch."""

from nanogpt import gpt2_training

CASES = (
    gpt2_training(
        "c1", "GPT 4 layers, width 128, 12 × 64, against plain PyTorch", 0.90,
        layers=4, width=128, heads=4, length=64, rows=12, ids=65, memory="growth_mb",
    ),
)  # fmt: skip

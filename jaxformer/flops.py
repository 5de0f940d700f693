"""Model FLOPs of one training example, and what chips can do at best: the two sides of MFU.

A multiplication and an addition count as two; backward is twice forward. Embedding look-ups, norms, biases and
recomputation are not counted; causal attention counts half of the square (the convention of llm.c and MaxText).
"""

from collections.abc import Mapping

# Dense bf16 peak in FLOP/s by a part of JAX's device_kind, most specific first (vendors' data sheets).
PEAKS: dict[str, float] = {
    "H200": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L4": 121e12,
    "V100": 125e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
    "TPU v2": 45e12,
}


def peak(device_kind: str) -> float | None:
    """Return a device's dense bf16 peak in FLOP/s, or None where it is not known (every CPU)."""
    return next((flops for name, flops in PEAKS.items() if name in device_kind), None)


def flops_per_example(
    *,
    family: str,
    d_model: int,
    d_ff: int,
    num_heads: int,
    head_dim: int,
    num_layers: int,
    vocab_size: int,
    gated: bool,
    transform: bool,
    lengths: Mapping[str, int],
) -> float:
    """Return the FLOPs of forward and backward for one row.

    `lengths`: "inputs" and, where present, "encoder_inputs" and "targets" (positions that meet the vocabulary).
    `vocab_size` is the stored one: padding rows are multiplied too.
    """
    inner = num_heads * head_dim
    feed_forward = (3 if gated else 2) * d_model * d_ff
    layer = 4 * d_model * inner + feed_forward
    row, targets = lengths["inputs"], lengths.get("targets", 0)
    head = 6 * targets * (d_model * vocab_size + (d_model**2 if transform else 0))
    if family == "decoder_only":
        return 6 * row * num_layers * layer + 6 * num_layers * inner * row**2 + head
    if family == "encoder_only":
        return 6 * row * num_layers * layer + 12 * num_layers * inner * row**2 + head
    source = lengths["encoder_inputs"]
    encoder = 6 * source * num_layers * layer + 12 * num_layers * inner * source**2
    # The decoder's own projections and the cross-attention's query and output; its keys and values read the source.
    decoder = (
        6 * row * num_layers * (6 * d_model * inner + feed_forward) + 6 * source * num_layers * 2 * d_model * inner
    )
    attention = 6 * num_layers * inner * row**2 + 12 * num_layers * inner * row * source
    return encoder + decoder + attention + head

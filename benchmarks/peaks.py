"""What the machine can do at best: float32 products a second of a large matrix product, and bytes a second read."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import THREADS, Case, Measure

SIZE, ROUNDS = 2048, 12


def best(function: Callable[[], Any]) -> float:
    """Return the least seconds that a call took."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def ours(folder: Path, number: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    square = jnp.ones((SIZE, SIZE), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    seconds = best(lambda: multiply(square, square).block_until_ready())
    return {"figures": {"flops_per_second": 2 * SIZE**3 / seconds}}


def theirs(folder: Path, number: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(THREADS)
    square, row = torch.ones(SIZE, SIZE), torch.ones(SIZE)
    much = torch.ones(64 * SIZE, SIZE)  # 1 GB
    product, read = best(lambda: square @ square), min(best(lambda: much @ row), best(lambda: much.sum()))
    return {"figures": {"flops_per_second": 2 * SIZE**3 / product, "bytes_per_second": 4 * much.numel() / read}}


CASES = (
    Case(name="peaks", what="the machine", sides={"ours": ours, "theirs": theirs}, measures=(Measure(),), memory=""),
)

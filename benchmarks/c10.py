"""C10: what a checkpoint of GPT-2 124M costs, against torch.save and torch.load.

The time that the next 20 steps lose, the memory that a save takes beside the state, and the time to restore.
"""

import ctypes
import gc
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from c3 import CASES as GPT2
from harness import THREADS, Case, Measure

BEFORE = AFTER = 20
LENGTH = 64  # of the row that is stepped on: short steps, whose own variation hides less


def highest(act: Callable[[], object]) -> float:
    """Return the most bytes that this process holds while it acts, what was freed before left out (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    act()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def ours(folder: Path, number: int) -> dict[str, Any]:
    import jax
    import numpy as np

    from jaxformer.checkpoint import Checkpoints
    from jaxformer.devices import placed, prepare_process

    prepare_process()
    from trainers import batch_of, learner_of

    spec, overrides = GPT2[0].sides["ours"].args[0]
    learner = learner_of((spec, (*overrides, f"objective.sequence_length={LENGTH}")))
    state, phase = learner.last.make_state(learner.rngs[0]), learner.config.phases[-1]
    batch, size = batch_of(learner.config, 0), sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    def steps(state: Any, first: int, count: int) -> tuple[Any, list[float]]:
        seconds = []
        for number in range(first, first + count):
            began = time.perf_counter()
            state, metrics = learner.step(number, phase, state, batch)
            float(metrics["loss"])
            seconds.append(time.perf_counter() - began)
        return state, seconds

    state, _ = steps(state, 1, 5)
    state, plain = steps(state, 6, BEFORE)
    path = folder / f"checkpoints{number}"
    checkpoints = Checkpoints(path, learner.config.checkpoint)
    saved = np.asarray(jax.tree.leaves(state.params)[0]).copy()
    began = time.perf_counter()
    checkpoints.save(5 + BEFORE, state, {})
    state, after = steps(state, 6 + BEFORE, AFTER)
    lost = time.perf_counter() - began - AFTER * statistics.median(plain)
    checkpoints.wait()
    shapes = jax.eval_shape(learner.last.make_state, learner.rngs[0])
    began = time.perf_counter()
    found = checkpoints.restore_latest(placed(shapes, learner.last.shardings))
    jax.block_until_ready(found)
    restored = time.perf_counter() - began
    assert found is not None
    same = bool(np.array_equal(jax.tree.leaves(found[1].params)[0], saved))
    holder = [found[1]]
    del found, state

    def three_steps() -> None:
        holder[0], _ = steps(holder[0], 1, 3)

    def three_steps_after_a_save() -> None:
        checkpoints.save(1 + BEFORE + AFTER, holder[0], {})
        three_steps()
        checkpoints.wait()

    usual = highest(three_steps)
    copied = (highest(three_steps_after_a_save) - usual) / size
    checkpoints.close()
    shutil.rmtree(path)
    figures = {"lost": [lost], "copied": [copied], "restored": [restored]}
    return {"figures": figures, "checked": [same], "state_bytes": size, "before": plain, "after": after}


def theirs(folder: Path, number: int) -> dict[str, Any]:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(50_000, (1, LENGTH))
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    path, weight = folder / f"{number}.pt", model.transformer.wte.weight.detach().clone()

    def save() -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    began = time.perf_counter()
    save()
    lost = time.perf_counter() - began  # nothing is written in the background: training waits for all of it
    size = path.stat().st_size
    usual = highest(lambda: None)
    copied = (highest(save) - usual) / size
    began = time.perf_counter()
    found = torch.load(path)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    restored = time.perf_counter() - began
    path.unlink()
    same = bool(torch.equal(model.transformer.wte.weight, weight))
    figures = {"lost": [lost], "copied": [copied], "restored": [restored]}
    return {"figures": figures, "checked": [same], "state_bytes": size}


CASES = (
    Case(
        name="c10", what="checkpoints of GPT-2 124M", sides={"ours": ours, "torch.save": theirs}, memory="", rounds=1,
        measures=(
            Measure(key="lost", what=f"a save: what the next {AFTER} steps lose", unit="s", most=0.5),
            Measure(key="copied", what="a save: memory beside the state", unit="times", most=1.25),
            Measure(key="restored", what="restoring", unit="s"),
        ),
    ),
)  # fmt: skip

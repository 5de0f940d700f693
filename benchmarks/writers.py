"""Writing on both sides: our decoding, and `generate` of transformers, with the same weights and prompts.

Equal tokens, or no figures. A call takes prompts to answers, on the host.
"""

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import THREADS, Case, Measure, since_start

PROMPT = NEW = 64
CALLS = 2  # after the first, which compiles
ENDS = {"gpt2": 50256, "t5": 1}
IDS = {"gpt2": 50_000, "t5": 32_000}


def writing(name: str, what: str, floor: float, *, system: str, rows: int, beams: int) -> Case:
    """Return the case of 64 tokens written after, or about, 64 others, by GPT-2 124M or T5-small."""
    job = (system, rows, beams)
    return Case(
        name=name, what=what, measures=(Measure(ratio=floor),), make=functools.partial(make, system),
        sides={"ours": functools.partial(ours, *job), "transformers": functools.partial(theirs, *job)},
    )  # fmt: skip


def make(system: str, folder: Path) -> None:
    """Write a random model, with weights so large that it does not only repeat itself."""
    import torch
    import transformers

    torch.manual_seed(0)
    if system == "gpt2":
        transformers.GPT2LMHeadModel(transformers.GPT2Config(initializer_range=0.06)).save_pretrained(
            folder / "weights"
        )
        return
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
        )
    )
    with torch.no_grad():  # T5's decoder repeats itself until it looks at what it has written
        for name, weight in t5.decoder.named_parameters():
            weight *= 60 if "relative" in name else 10 if "SelfAttention.o" in name or "SelfAttention.v" in name else 1
    t5.save_pretrained(folder / "weights")


def prompts(system: str, rows: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(10, IDS[system], (rows, PROMPT))


def ours(system: str, rows: int, beams: int, folder: Path, number: int) -> dict[str, Any]:
    """Write with our decoding; the first call makes the weights for it and compiles."""
    import jax
    import jax.numpy as jnp

    from jaxformer.devices.runtime import prepare_process
    from jaxformer.generation import GenerationConfig, TokenRules, decoding_weights, generate
    from jaxformer.interop.configs import layout_of, read_json
    from jaxformer.interop.importing import describe, named, read_params
    from jaxformer.interop.weights import stored_tensors
    from jaxformer.models import Model
    from jaxformer.trees import flatten

    prepare_process()
    where = folder / "weights" / "config.json"
    told = read_json(where)
    layout = layout_of(told, where)
    tensors = named(layout, stored_tensors(where.parent))
    config, classes = describe(layout, told, where, tensors)
    model = Model(config)
    params = jax.tree.map(jnp.asarray, read_params(layout, model, classes, tensors, where.parent))
    settings = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, num_beams=beams, length_penalty="power", length_alpha=float(beams > 1)
    )
    rules = TokenRules(end_id=ENDS[system])
    made: list[Any] = []

    def write() -> np.ndarray:
        if not made:
            made.append(decoding_weights(model, params))
        answers = generate(model, made[0], list(prompts(system, rows)), settings, rules)
        return np.array([answer[0].ids for answer in answers])

    # A token reads the weights of the decoder, and the table as the softmax; what makes keys and values of the
    # encoder's output is read once.
    once = re.compile("encoder/.*|.*cross_attention/(key|value)/.*")
    read = [leaf.nbytes for path, leaf in flatten(params).items() if not once.fullmatch(path)]
    return timed(write) | {"bytes": NEW * sum(read), "shapes": {"prompts": [rows, PROMPT], "new": NEW, "beams": beams}}


def theirs(system: str, rows: int, beams: int, folder: Path, number: int) -> dict[str, Any]:
    """Write with transformers in its best setting: a dynamic cache (a static one was no faster), inference mode."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    kind = {"gpt2": transformers.GPT2LMHeadModel, "t5": transformers.T5ForConditionalGeneration}[system]
    model = kind.from_pretrained(folder / "weights", attn_implementation="sdpa")
    model = model.eval()
    ids = torch.from_numpy(prompts(system, rows))
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": beams, "do_sample": False}
    settings |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": ENDS[system]}

    def write() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(model.generate(ids, **settings).numpy()[:, -NEW:])

    return timed(write)


def timed(write: Callable[[], np.ndarray]) -> dict[str, Any]:
    tokens = write()
    first, seconds = since_start(), []
    for _ in range(CALLS):
        began = time.perf_counter()
        tokens = write()
        seconds.append(time.perf_counter() - began)
    return {
        "figures": {"step": seconds},
        "checked": tokens.ravel().tolist(),
        "distinct_tokens": len(np.unique(tokens)),
        "first_seconds": first,
    }

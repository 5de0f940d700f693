"""What decoding costs: nothing of a cache's or a kernel's size is made at a token, a bucket compiles once, and a cache
is as large as its formula says."""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
import pytest
from compiling import AS_USERS
from test_generation import NEW, NO_END, START, built, prompts_of, tiny

from jaxformer.generation import GenerationConfig, TokenRules, beams, decoding, decoding_weights, generate
from jaxformer.generation.writing import arguments, prompt_batch
from jaxformer.models import Model, cache_bytes

ROWS, WIDTH, BEAMS = 6, 32, 3
# What takes no memory of its own, or only hands on what is there.
FREE = {"parameter", "get-tuple-element", "bitcast", "tuple", "while", "dynamic-update-slice"}


def model_of(name: str) -> Model:
    """A model with heads of a usual size: those of tiny ones XLA adds up in another way."""
    return Model(tiny(name, d_model=128, num_heads=2, head_dim=64, d_ff=256))


@functools.cache
def traced(name: str, num_beams: int) -> tuple[Any, Any]:
    """Return `advance`, lowered, and the state that it takes."""
    model = model_of(name)
    programs = decoding.programs(model, NEW, False, ())
    if num_beams > 1:
        programs = beams.programs(model, NEW, num_beams, "gnmt", False, ())
    given = arguments(model, GenerationConfig(), TokenRules(), np.full(ROWS, NEW, np.int32))
    weights = jax.eval_shape(model.unstacked, model.shapes)
    batch = prompt_batch(model, prompts_of(*[3] * ROWS), WIDTH, START)
    state = jax.eval_shape(programs.begin, weights, batch, given)
    return programs.advance.lower(weights, batch["positions"][:, -1], state, given, np.int32(NEW)), state


def made(text: str, size: int) -> dict[str, str]:
    """Return the instructions of compiled text that make arrays of `size` numbers or more, with their kind.

    What stands inside a fusion makes nothing, and a fusion that ends by updating a slice does it in place.
    """
    inside = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text))
    found, updates, computation = {}, set(), ""
    for line in text.splitlines():
        if begun := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            computation = begun[1]
        if computation in inside and re.match(r"\s+ROOT .* dynamic-update-slice\(", line):
            updates.add(computation)
    for line in text.splitlines():
        if begun := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            computation = begun[1]
        parts = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = \w+\[([\d,]+)\]\S* ([\w\-]+)\(", line)
        if computation in inside or not parts or math.prod(map(int, parts[2].split(","))) < size:
            continue
        called = re.search(r"calls=%([\w.\-]+)", line)
        if parts[3] not in FREE and not (called and called[1] in updates):
            found[parts[1]] = parts[3]
    return found


@pytest.mark.parametrize(("name", "num_beams"), [("gpt", 1), ("t5", BEAMS)])
def test_no_token_makes_anything_of_the_size_of_a_cache_or_a_kernel(name: str, num_beams: int) -> None:
    program, state = traced(name, num_beams)
    compiled = program.compile(compiler_options=AS_USERS)
    layers = state.cache.layers
    smallest = min(math.prod(layer["key"].shape) for layer in layers)
    text = compiled.as_text()
    assert made(text, smallest) == {}
    # The test sees something: the cache is in the text, and it is updated.
    shape = ",".join(map(str, layers[0]["key"].shape))
    assert re.search(rf"f32\[{shape}\]\S* dynamic-update-slice\(", text)
    sizes = compiled.memory_analysis()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    assert sizes.alias_size_in_bytes >= held
    assert sizes.temp_size_in_bytes < held


@pytest.mark.parametrize(("name", "num_beams"), [("gpt", 1), ("t5", BEAMS)])
def test_a_cache_is_as_large_as_its_formula(name: str, num_beams: int) -> None:
    model = model_of(name)
    _, state = traced(name, num_beams)
    encodes = model.config.family == "encoder_decoder"
    places = (1 if encodes else WIDTH) + NEW * num_beams
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache.layers))
    assert held == cache_bytes(model, ROWS, places, WIDTH)


def test_weights_for_decoding_take_one_program_for_all_layers() -> None:
    counts = []
    for num_layers in (2, 4):
        model = Model(tiny("gpt", num_layers=num_layers))
        text = jax.jit(model.unstacked).lower(model.shapes).as_text()
        counts.append((text.count("func.func private"), text.count("call @")))
    (programs, calls), (of_more, more_calls) = counts
    assert programs == of_more and more_calls == 2 * calls


def test_one_program_for_all_prompts_of_a_bucket() -> None:
    model, params = built("learned")
    programs, weights = decoding.programs(model, NEW, False, ()), decoding_weights(model, params)

    def compiled(*lengths: int) -> tuple[int, int]:
        config = GenerationConfig(max_new_tokens=NEW)
        generate(model, weights, prompts_of(*lengths), config, TokenRules(NO_END, START))
        return programs.begin._cache_size(), programs.advance._cache_size()

    before = compiled(7, 1, 12, 3, 2, 9)
    assert compiled(1, 1, 1, 1, 1, 1) == compiled(2, 5, 11, 16, 3, 4) == before

"""Attention kernels of GPUs and TPUs, without one: programs lowered for them, their arguments, and what they compute.

Whole training steps are lowered for CUDA and TPU on CPU; Pallas kernels run in Pallas' interpreter.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tiny import CONFIGS, batch_of, head_shapes, params_of, supervision_of

from jaxformer.devices.sharding import ShardingConfig, make_mesh
from jaxformer.models import kernels
from jaxformer.models.attention import attend, attend_masked
from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.models.sight import Sight, visibility_mask
from jaxformer.training.step import TrainState, group_sums, losses_of, make_train_step
from jaxformer.trees import flatten

ROWS, HEADS, LENGTH, SOURCE, WINDOW = 4, 2, 256, 384, 100
SIZES = {"d_model": 128, "num_heads": HEADS, "head_dim": 64, "num_layers": 2, "max_length": 512}


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let JAX believe in a cuDNN and in a GPU to which it would be sent."""
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda capability: True)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Pallas kernels on CPU, in several blocks a row."""
    call = pallas.pallas_call
    monkeypatch.setattr(pallas, "pallas_call", lambda *args, **how: call(*args, **how | {"interpret": True}))
    monkeypatch.setattr(kernels, "BLOCKS", (128,))
    for module, name in ((flash_attention, "flash_attention"), (splash_attention_kernel, "_splash_attention")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)  # jitted functions remember their traces


def lowered(name: str, platform: str, mesh: Any = None, slots: dict[str, Any] | None = None, **how: Any) -> str:
    """Return the text of a training step of a family in bfloat16, lowered for cuda or tpu; attention is auto."""
    config = dataclasses.replace(CONFIGS[name], **SIZES | {"attention_window": WINDOW} | (slots or {}))
    device = {"cuda": "gpu", "tpu": "tpu"}[platform]
    execution = Execution(dtype="bfloat16", device=device, mesh=mesh, **{"packed": False} | how)
    supervision = supervision_of(name)
    model = Model(config, execution, heads=head_shapes(supervision.heads))
    optimizer = optax.sgd(0.1)
    step = make_train_step(model, losses_of(supervision), optimizer)
    state = TrainState(jnp.zeros((), jnp.int32), model.shapes, optimizer.init(model.shapes))
    batch = {
        key: jax.ShapeDtypeStruct(value.shape, value.dtype)
        for key, value in batch_of(name, ROWS, LENGTH, SOURCE).items()
    }
    arguments = (state, batch, jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32))
    return jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def squares(text: str, *lengths: int) -> set[str]:
    """Return the shapes [A, B, …] of all arrays of four axes that end with two of these lengths, [1, 1] left out."""
    sizes = "|".join(map(str, lengths))
    return set(re.findall(rf"tensor<(\d+x\d+)x(?:{sizes})x(?:{sizes})x", text)) - {"1x1"}


def cudnn_calls(text: str) -> list[tuple[str, str, float, int, list[str], list[str]]]:
    """Return (what it computes, mask type, scale, window, types of operands beyond q, k, v and what the backward pass
    reads, types of results beyond the output's or the three gradients') of every call of cuDNN's attention."""
    calls = []
    for line in text.splitlines():
        found = re.search(r"custom_call @__cudnn\$fmha(\w+)\(.*backend_config = \"(.*?)\".* : \((.*)\) -> (.*)$", line)
        if found:
            kind, config, reads, gives = found.groups()
            settings = json.loads(config.replace(r"\22", '"'))["cudnn_fmha_backend_config"]
            assert settings["dropout_rate"] == 0 and settings["max_seg_per_batch"] == 1
            types = [re.findall(r"tensor<([^>]*)>", side) for side in (reads, gives)]
            is_backward = kind.endswith("Backward")
            mine = [t for t in types[0] if not re.match(rf"{ROWS}x\d+x{HEADS}x64xbf16|{ROWS}x{HEADS}x\d+xf32", t)]
            more = types[1][3:-1] if is_backward else []
            calls.append(
                (kind, settings["mask_type"], settings["fmha_scale"], settings["sliding_window_length"], mine, more)
            )
    return calls


# What cuDNN is told, by hand: (what it computes, mask type, scale, window, arrays beside q, k and v, and the gradients
# beside theirs) of each attention of the model, with the number of its calls.
LENGTHS = [f"{ROWS}xi32"] * 2
OWN, ENCODER, CROSS = f"1x{HEADS}x256x256xbf16", f"1x{HEADS}x384x384xbf16", f"1x{HEADS}x256x384xbf16"
SEGMENTS = f"{ROWS}x1x256x256xbf16"
TOLD: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[Any, int]]] = {
    "GPT-2": ("gpt", {}, {}, {("Softmax", "CAUSAL", 0.125, 0, (), ()): 2}),
    "GPT-3": ("gpt3", {}, {}, {
        ("Softmax", "CAUSAL", 0.125, 0, (), ()): 1, ("Softmax", "CAUSAL", 0.125, WINDOW, (), ()): 1,
    }),
    "GPT-3 in a loop": ("gpt3", {}, {"unroll": 1}, {
        ("Softmax", "CAUSAL", 0.125, 0, (), ()): 1, ("Softmax", "CAUSAL", 0.125, WINDOW, (), ()): 1,
    }),
    "BERT": ("bert", {}, {}, {("Softmax", "PADDING", 0.125, 0, tuple(LENGTHS), ()): 2}),
    "T5": ("t5", {}, {}, {
        ("ScaleBiasSoftmax", "PADDING", 1.0, 0, (ENCODER, *LENGTHS), (ENCODER,)): 2,
        ("ScaleBiasSoftmax", "CAUSAL", 1.0, 0, (OWN,), (OWN,)): 2,
        ("Softmax", "PADDING", 1.0, 0, tuple(LENGTHS), ()): 2,
    }),
    "packed GPT-2": ("gpt", {}, {"packed": True}, {
        ("ScaleBiasSoftmax", "CAUSAL", 0.125, 0, (SEGMENTS,), ()): 2,
    }),
    "packed BERT": ("bert", {}, {"packed": True}, {
        ("ScaleBiasSoftmax", "NO_MASK", 0.125, 0, (SEGMENTS,), ()): 2,
    }),
    "prefix": ("gpt", {"visibility": "prefix"}, {}, {("ScaleBiasSoftmax", "NO_MASK", 0.125, 0, (SEGMENTS,), ()): 2}),
    "BERT with windows": ("bert", {"attention_pattern": "banded"}, {}, {
        ("ScaleBiasSoftmax", "NO_MASK", 0.125, 0, (SEGMENTS,), ()): 2,
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_what_cudnn_is_told(case: str, as_on_gpu: None) -> None:
    name, slots, how, told = TOLD[case]
    text = lowered(name, "cuda", slots=slots, **how)
    calls = cudnn_calls(text)
    assert len(calls) == 2 * sum(told.values())  # forward and backward
    for (kind, mask, scale, window, arrays, gradients), count in told.items():
        forward = (kind, mask, scale, window, list(arrays), [])
        backward = (f"{kind}Backward", mask, scale, window, list(arrays), list(gradients))
        assert calls.count(forward) == calls.count(backward) == count
    shared = {f"1x{HEADS}"} if name == "t5" else {f"{ROWS}x1"} if SEGMENTS in str(told) else set()
    assert squares(text, LENGTH, SOURCE) == shared


@pytest.mark.parametrize(
    ("name", "how", "count", "shared"),
    [
        ("gpt", {}, 1, set()),
        ("gpt3", {"packed": True}, 2, set()),
        ("gpt3", {"unroll": 1}, 2, set()),
        ("bert", {}, 1, set()),
        ("t5", {"packed": True}, 3, {f"1x{HEADS}"}),
    ],
)
def test_pallas_kernels_run_on_tpu(name: str, how: dict[str, Any], count: int, shared: set[str]) -> None:
    """Three for each kind of attention: forward, and two for the gradients. Both layers call the same. There are no
    scores, and of T5's bias one for all rows."""
    text = lowered(name, "tpu", **how)
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 3 * count
    assert squares(text, LENGTH, SOURCE) == shared


def test_each_device_of_a_mesh_calls_kernels_on_its_own_rows_and_heads(as_on_gpu: None) -> None:
    mesh = make_mesh(ShardingConfig(data=2, tensor=2))
    text = lowered("t5", "tpu", mesh)
    calls = [line for line in text.splitlines() if "custom_call @tpu_custom_call" in line]
    read = {found for line in calls for found in re.findall(r"tensor<(\d+)x(\d+)x(?:256|384)x64xbf16>", line)}
    assert read == {("1", "1"), (f"{ROWS // 2}", "1")}  # with a bias row by row
    assert "CustomSPMDPartitioning" in lowered("gpt", "cuda", mesh)  # JAX's own way to split cuDNN's calls


# What they compute.


def drawn(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def segments_of(length: int, packed: bool) -> jax.Array:
    """Rows of three segments, or of one, and padding behind; the last row is padding alone."""
    cuts = np.array([length // 3, length // 2, length - 20]) if packed else np.array([length - 20])
    rows = np.stack([np.searchsorted(cuts + shift, np.arange(length), "right") + 1 for shift in (0, 7)])
    return jnp.asarray(np.concatenate([np.where(rows > len(cuts), 0, rows), np.zeros((1, length), int)]), jnp.int32)


CASES = {
    # kernel, queries, keys, visibility, window, packed, whether there is a bias
    "splash causal": ("splash", 160, 160, "causal", None, True, False),
    "splash window": ("splash", 256, 256, "causal", 50, True, False),
    "splash window to both sides": ("splash", 160, 160, "full", 30, False, False),
    "splash across": ("splash", 130, 256, "full", None, True, False),
    "flash with bias": ("flash", 160, 160, "causal", None, True, True),
    "flash encoder": ("flash", 256, 256, "full", None, False, True),
    "flash across": ("flash", 130, 256, "full", None, True, False),
    "cudnn causal": ("cudnn", 160, 160, "causal", None, False, True),
    "cudnn window": ("cudnn", 160, 160, "causal", 30, False, False),
    "cudnn lengths": ("cudnn", 160, 160, "full", None, False, True),
    "cudnn across": ("cudnn", 130, 256, "full", None, False, False),
}


@pytest.fixture
def cudnn_by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let XLA compute what cuDNN is asked for: both read the same arguments of `jax.nn.dot_product_attention`."""
    product: Callable[..., Any] = jax.nn.dot_product_attention

    def by_xla(*arrays: Any, implementation: str, **how: Any) -> Any:
        assert implementation == "cudnn"
        return product(*arrays, implementation="xla", **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.startswith("flash across")) for case in CASES]
)
def test_kernels_compute_what_the_plain_form_does(case: str, interpreted: None, cudnn_by_xla: None) -> None:
    """Values and gradients at all places but padding's, and nothing of another segment."""
    name, queries, keys, visibility, window, packed, with_bias = CASES[case]
    shapes = [(3, queries, HEADS, 16), (3, keys, HEADS, 16), (3, keys, HEADS, 16)]
    *arrays, out = drawn(*shapes, *[(1, HEADS, queries, keys)] * with_bias, shapes[0])
    query_segments, key_segments = segments_of(queries, packed), segments_of(keys, packed)
    sight = Sight(name, query_segments, key_segments, visibility, window)
    mask = visibility_mask(query_segments, key_segments, visibility=visibility, window=window)
    out = jnp.where((query_segments > 0)[..., None, None], out, 0)  # what stands at padding has no weight

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
        return attend(q, k, v, sight, *bias, scale=0.3)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
        return attend_masked(q, k, v, mask, *bias, scale=0.3)

    def weighed(read: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        weighed = read(*arrays) * out
        return jnp.sum(weighed), weighed

    places = tuple(range(len(arrays)))
    found, expected = (
        jax.jit(jax.grad(functools.partial(weighed, read), places, has_aux=True))(*arrays) for read in (kernel, plain)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.max(jnp.abs(one - other)) <= 1e-5 * jnp.max(jnp.abs(other))
    if packed:
        read = jax.jit(kernel)
        of_another = (key_segments != 2)[..., None, None]
        changed = read(arrays[0], *(jnp.where(of_another, x + 9.0, x) for x in arrays[1:3]), *arrays[3:])
        own = np.asarray(query_segments) == 2
        np.testing.assert_array_equal(np.asarray(changed)[own], np.asarray(read(*arrays))[own])


@pytest.mark.slow  # 10 s: what no test of a kernel alone sees: layers of two kinds in a loop, and devices of a mesh
@pytest.mark.parametrize(("name", "how"), [("gpt3", {"unroll": 1}), ("t5", {"tensor": 2})])
def test_a_models_gradients_are_the_same(name: str, how: dict[str, Any], interpreted: None) -> None:
    config = dataclasses.replace(CONFIGS[name], num_layers=2, max_length=128, attention_window=20)
    how = dict(how)
    sharding = ShardingConfig(data=2, tensor=how.pop("tensor", 1))
    mesh, batch = make_mesh(sharding), batch_of(name, length=40, source=30)

    def gradients(device: str) -> dict[str, jax.Array]:
        model = Model(config, Execution(device=device, mesh=mesh, **how))

        def loss(params: dict) -> jax.Array:
            return sum(group_sums(model, supervision_of(name), params, batch, None)[0].values(), jnp.zeros(()))

        return flatten(jax.jit(jax.grad(loss))(params_of(model)))

    expected, found = gradients("cpu"), gradients("tpu")
    total = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in expected.values()))
    for path, leaf in expected.items():
        assert np.linalg.norm(found[path] - leaf) <= max(1e-4 * np.linalg.norm(leaf), 1e-6 * total), path

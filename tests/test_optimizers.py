import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.errors import UserError
from jaxformer.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    Adafactor,
    AdamW,
    Optimizer,
    _rounded,
    freeze,
    make_optimizer,
    schedule,
)
from jaxformer.trees import flatten, unflatten

RATE = dict(learning_rate=1.0, schedule="constant")
QUERY = "decoder/layers/attention/query"
SHAPES = {
    "embedding/tokens": (12, 8),
    f"{QUERY}/kernel": (3, 8, 16),
    f"{QUERY}/bias": (3, 16),
    "encoder/layers/attention_norm/scale": (2, 8),
    "decoder/final_norm/scale": (8,),
}


def random_params(seed: int, spread: float = 1.0) -> dict:
    rng = np.random.default_rng(seed)
    # Each layer has its own magnitude, so that treating a stack as one tensor shows.
    return unflatten(
        {
            path: jnp.asarray(
                spread * rng.normal(size=shape) * 10.0 ** np.arange(shape[0]).reshape((-1,) + (1,) * (len(shape) - 1))
                if "layers" in path
                else rng.normal(size=shape),
                jnp.float32,
            )
            for path, shape in SHAPES.items()
        }
    )


def run(
    optimizer: optax.GradientTransformationExtraArgs, params: dict, gradients: list[dict], rates: float | list = 1.0
) -> dict:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient, rate in zip(gradients, np.broadcast_to(rates, len(gradients)), strict=True):
        updates, state = update(gradient, state, params, learning_rate=jnp.float32(rate))
        params = optax.apply_updates(params, updates)
    return params


def run_config(config: Optimizer, params: dict, gradients: list[dict]) -> dict:
    """Run the optimizer of a config with its own schedule, for a run of 10 steps."""
    rates = [schedule(config, 10)(done) for done in range(len(gradients))]
    return run(make_optimizer(config, params), params, gradients, rates)


def unstack(tree: dict) -> dict:
    """The same parameters as a separate array for each layer: decoder/0/attention/…"""
    flat = {}
    for path, leaf in flatten(tree).items():
        if "/layers/" in path:
            flat.update({path.replace("/layers/", f"/layer{i}/"): leaf[i] for i in range(leaf.shape[0])})
        else:
            flat[path] = leaf
    return unflatten(flat)


def rates(steps: list[int], num_steps: int = 100, **fields: object) -> list[float]:
    function = schedule(Optimizer(**fields), num_steps)
    return [function(n) for n in steps]


def test_linear_is_berts() -> None:
    """lr * n/w while n < w, else lr * (1 - n/N): the decay is computed from step 0."""
    assert rates([0, 5, 9, 10, 55, 100, 200], learning_rate=1.0, schedule="linear", warmup_steps=10) == pytest.approx(
        [0, 0.5, 0.9, 0.9, 0.45, 0, 0]
    )
    bert = rates([5_000, 10_000, 505_000], 1_000_000, learning_rate=1e-4, schedule="linear", warmup_steps=10_000)
    assert bert == pytest.approx([5e-5, 9.9e-5, 4.95e-5])


def test_linear_product_is_gpts_code() -> None:
    """(x/w if x <= w else 1) * (1 - x), x the fraction of the run."""
    for n, rate in zip(range(0, 101, 5), rates(list(range(0, 101, 5)), schedule="linear_product", warmup_steps=20,
                                                learning_rate=1.0), strict=True):  # fmt: skip
        x, w = n / 100, 0.2
        assert rate == pytest.approx((x / w if x <= w else 1) * (1 - x), abs=1e-6)


def test_decays_from_the_peak() -> None:
    fields = dict(learning_rate=2.0, warmup_steps=10, decay_steps=50, final_fraction=0.1)
    assert rates([0, 5, 10, 30, 50, 80], schedule="linear_from_peak", **fields) == pytest.approx(
        [0, 1, 2, 1.1, 0.2, 0.2]
    )
    assert rates([0, 5, 10, 20, 30, 50, 80], schedule="cosine", **fields) == pytest.approx(
        [0, 1, 2, 0.2 + 0.9 * (1 + math.cos(math.pi / 4)), 1.1, 0.2, 0.2]
    )


def test_no_warmup_starts_at_the_peak() -> None:
    for name in SCHEDULES:
        assert rates([0], learning_rate=3.0, schedule=name) == pytest.approx([3.0]), name


def test_inverse_sqrt_is_the_transformers() -> None:
    """d^-0.5 * min(step^-0.5, step * 4000^-1.5), updates counted from 1; peaks 6.99e-4 (base) and 4.94e-4 (big)."""
    for d_model, peak in ((512, 6.99e-4), (1024, 4.94e-4)):
        fields = dict(learning_rate=d_model**-0.5 * 4000**-0.5, schedule="inverse_sqrt", warmup_steps=4000)
        steps = [1, 100, 3999, 4000, 4001, 100_000]
        expected = [d_model**-0.5 * min(m**-0.5, m * 4000**-1.5) for m in steps]
        found = rates([m - 1 for m in steps], **fields)
        assert found == pytest.approx(expected, rel=1e-5)
        assert max(found) == found[3] == pytest.approx(peak, rel=1e-3)


def test_inverse_sqrt_flat_is_t5s() -> None:
    """1 / sqrt(max(n, 10^4))."""
    found = rates([0, 1, 10_000, 20_000, 10**6], learning_rate=0.01, schedule="inverse_sqrt_flat", warmup_steps=10_000)
    assert found == pytest.approx([1 / math.sqrt(max(n, 1e4)) for n in (0, 1, 10_000, 20_000, 10**6)])
    assert Adafactor().learning_rate == 0.01 and Adafactor().warmup_steps == 10_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(schedule="cosin"), "optimizer.schedule: 'cosin'.*did you mean 'cosine'"),
        (dict(learning_rate=-1.0), "optimizer.learning_rate"),
        (dict(final_fraction=2.0), "optimizer.final_fraction"),
        (dict(beta1=1.0), "optimizer.beta1"),
        (dict(weight_decay=-0.1), "optimizer.weight_decay"),
    ],
)
def test_bad_values_are_user_errors(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW(**fields)


def test_a_warmup_that_fills_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps: 50 .* training\.num_steps \(50\)"):
        schedule(AdamW(warmup_steps=50), 50)
    with pytest.raises(UserError, match=r"optimizer\.decay_steps \(40\)"):
        schedule(AdamW(warmup_steps=50, decay_steps=40), 100)
    schedule(AdamW(warmup_steps=50, schedule="constant"), 50)


@pytest.mark.parametrize(
    "config",
    [
        AdamW(learning_rate=0.01, schedule="cosine", warmup_steps=2, clip_norm=0.5, weight_decay=0.1),
        AdamW(learning_rate=0.01, schedule="constant", bias_correction=False),
        Adafactor(learning_rate=0.1, schedule="constant", warmup_steps=0, factor_min_dim=8),
        Adafactor(learning_rate=0.1, schedule="constant", warmup_steps=0, factor_min_dim=8, beta1=0.9, clip_norm=1.0),
    ],
    ids=["adamw", "adamw-bert", "adafactor", "adafactor-momentum"],
)
def test_ten_updates_equal_an_unstacked_copys(config: Optimizer) -> None:
    params, gradients = random_params(0), [random_params(i, 0.3) for i in range(1, 11)]
    stacked = unstack(run_config(config, params, gradients))
    single = unstack(params)
    separate = run_config(config, single, [unstack(gradient) for gradient in gradients])
    assert flatten(stacked).keys() == flatten(separate).keys() and len(flatten(stacked)) == 10
    for path, expected in flatten(separate).items():
        error = np.max(np.abs(flatten(stacked)[path] - expected)) / np.max(np.abs(expected))
        assert error < 1e-6, path
        assert np.max(np.abs(expected - flatten(single)[path])) > 1e-4, path


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_is_the_papers(bias_correction: bool) -> None:
    """BERT's released optimizer (no correction) and Loshchilov's AdamW, written out in numpy."""
    config = AdamW(
        learning_rate=0.01, schedule="linear", warmup_steps=2, clip_norm=1.0, weight_decay=0.1,
        epsilon=1e-6, bias_correction=bias_correction,
    )  # fmt: skip
    params, gradients = random_params(0), [random_params(i) for i in range(1, 6)]
    found = flatten(run_config(config, params, gradients))
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    m = {path: np.zeros_like(leaf) for path, leaf in p.items()}
    v = {path: np.zeros_like(leaf) for path, leaf in p.items()}
    for n, gradient in enumerate(gradients):
        g = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(gradient).items()}
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in g.values()))
        rate = 0.01 * (n / 2 if n < 2 else 1 - n / 10)
        for path in p:
            clipped = g[path] / max(norm, 1.0)
            m[path] = 0.9 * m[path] + 0.1 * clipped
            v[path] = 0.999 * v[path] + 0.001 * clipped**2
            a, b = (1 - 0.9 ** (n + 1), 1 - 0.999 ** (n + 1)) if bias_correction else (1, 1)
            decay = 0 if path.endswith("bias") or "norm" in path else 0.1
            p[path] = p[path] - rate * (m[path] / a / (np.sqrt(v[path] / b) + 1e-6) + decay * p[path])
    for path in p:
        np.testing.assert_allclose(found[path], p[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_adafactor_is_the_papers() -> None:
    """Shazeer and Stern's algorithms 4 and 5, as T5 sets them, on one factored and one unfactored array."""
    rng = np.random.default_rng(0)
    p = {"kernel": rng.normal(size=(6, 9)), "scale": 1e-5 * rng.normal(size=7)}
    gradients = [{"kernel": rng.normal(size=(6, 9)), "scale": rng.normal(size=7)} for _ in range(5)]
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in p.items()}
    config = Adafactor(learning_rate=0.1, schedule="constant", warmup_steps=0, factor_min_dim=6)
    found = run_config(config, params, [jax.tree.map(jnp.float32, g) for g in gradients])
    rows, columns, v = np.zeros(6), np.zeros(9), np.zeros(7)
    for t, g in enumerate(gradients, start=1):
        beta = 1 - t**-0.8
        square = g["kernel"] ** 2 + 1e-30
        rows, columns = beta * rows + (1 - beta) * square.mean(1), beta * columns + (1 - beta) * square.mean(0)
        v = beta * v + (1 - beta) * (g["scale"] ** 2 + 1e-30)
        updates = {
            "kernel": g["kernel"] / np.sqrt(np.outer(rows, columns) / rows.mean()),
            "scale": g["scale"] / np.sqrt(v),
        }
        for name, u in updates.items():
            u = u / max(1, np.sqrt(np.mean(u**2)))
            p[name] = p[name] - 0.1 * max(np.sqrt(np.mean(p[name] ** 2)), 1e-3) * u
    np.testing.assert_allclose(found["kernel"], p["kernel"], rtol=1e-4)
    np.testing.assert_allclose(found["scale"], p["scale"], rtol=1e-4)


def test_adafactor_factors_each_layer() -> None:
    params = {"decoder": {"layers": {"kernel": jnp.ones((300, 128, 130)), "small": jnp.ones((300, 127, 130))}}}
    state = jax.eval_shape(make_optimizer(Adafactor(), params).init, params)
    stacked = state[0]["layers_300"][0]
    assert stacked.v_row["decoder"]["layers"]["kernel"].shape == (300, 128)
    assert stacked.v_col["decoder"]["layers"]["kernel"].shape == (300, 130)
    assert stacked.v["decoder"]["layers"]["small"].shape == (300, 127, 130)


def test_decay_goes_by_name_and_may_select_layers() -> None:
    params = random_params(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = AdamW(weight_decay=0.5, decay_exclude=(".*/bias", "decoder/layers[1:]/.*"), **RATE)
    found = flatten(run_config(config, params, [zeros]))
    start = flatten(params)
    np.testing.assert_allclose(found["embedding/tokens"], 0.5 * start["embedding/tokens"])
    np.testing.assert_allclose(found["decoder/final_norm/scale"], 0.5 * start["decoder/final_norm/scale"])
    np.testing.assert_array_equal(found[f"{QUERY}/bias"], start[f"{QUERY}/bias"])
    np.testing.assert_allclose(found[f"{QUERY}/kernel"][0], 0.5 * start[f"{QUERY}/kernel"][0])
    np.testing.assert_array_equal(found[f"{QUERY}/kernel"][1:], start[f"{QUERY}/kernel"][1:])


def test_default_exclusions_may_be_absent_but_misspellings_may_not() -> None:
    params = {"tokens": jnp.ones((2, 3))}
    make_optimizer(AdamW(), params)
    with pytest.raises(UserError, match="optimizer.decay_exclude: pattern '.*/bais'"):
        make_optimizer(AdamW(decay_exclude=(".*/bais",)), params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_do_not_move(name: str) -> None:
    config = dataclasses.replace(OPTIMIZERS[name](), clip_norm=1.0, warmup_steps=0, **RATE)
    params, gradients = random_params(0), [random_params(i, 100.0) for i in range(1, 4)]
    trainable = ("decoder/final_norm/.*", "decoder/layers[1]/.*")
    frozen = freeze(make_optimizer(config, params), trainable, params)
    state = jax.eval_shape(frozen.init, params)
    assert not any("tokens" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    found, start = flatten(run(frozen, params, gradients)), flatten(params)
    assert found.keys() == start.keys()
    for path in ("embedding/tokens", "encoder/layers/attention_norm/scale"):
        np.testing.assert_array_equal(found[path], start[path])
    for path in (f"{QUERY}/kernel", f"{QUERY}/bias"):
        np.testing.assert_array_equal(np.delete(found[path], 1, 0), np.delete(start[path], 1, 0))
        assert np.all(np.max(np.abs(found[path][1] - start[path][1])) > 1e-3)
    assert np.max(np.abs(found["decoder/final_norm/scale"] - start["decoder/final_norm/scale"])) > 1e-3


def test_frozen_gradients_do_not_count_in_the_clip_norm() -> None:
    config = AdamW(beta1=0.0, beta2=0.0, epsilon=1.0, weight_decay=0.0, bias_correction=False, **RATE)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2), "layers": {"c": jnp.zeros((2, 2))}}
    gradient = {
        "a": jnp.array([3.0, 4.0]),
        "b": jnp.array([1e6, 0.0]),
        "layers": {"c": jnp.array([[0.0, 0], [1e6, 0]])},
    }
    optimizer = freeze(make_optimizer(config, params), ("a", "layers[0]/c"), params)
    found = run(optimizer, params, [gradient])
    clipped = np.array([0.6, 0.8])  # its own norm, 5, alone
    np.testing.assert_allclose(found["a"], -clipped / (clipped + 1.0), rtol=1e-6)


def test_nothing_to_freeze_changes_nothing() -> None:
    optimizer = make_optimizer(AdamW(), random_params(0))
    assert freeze(optimizer, (".*",), random_params(0)) is optimizer
    for trainable, message in (("hed/.*",), "training.trainable: pattern 'hed/.*'"), ((), "training.trainable: no"):
        with pytest.raises(UserError, match=message):
            freeze(optimizer, trainable, random_params(0))


@pytest.mark.parametrize("bias_correction", [True, False])
def test_moments_in_bfloat16_follow_those_in_float32(bias_correction: bool) -> None:
    """With beta2 0.999: rounded to the nearest, the second moment would stay where it first got to."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2.0, (4, 250)).astype(np.float32)
    params = {"kernel": jnp.zeros((4, 250))}
    finals, updates = [], []
    for dtype in ("float32", "bfloat16"):
        config = AdamW(learning_rate=1.0, weight_decay=0.0, clip_norm=0.0, bias_correction=bias_correction,
                       moment_dtype=dtype)  # fmt: skip
        optimizer = make_optimizer(config, params)
        state, draw = optimizer.init(params), np.random.default_rng(1)
        step = jax.jit(functools.partial(optimizer.update, learning_rate=1.0))
        for _ in range(300):
            gradient = jnp.asarray(scale + 0.1 * draw.normal(size=scale.shape), jnp.float32)
            update, state = step({"kernel": gradient}, state, params)
        assert state[0].mu["kernel"].dtype == state[0].nu["kernel"].dtype == jnp.dtype(dtype)
        finals.append(np.asarray(state[0].nu["kernel"], np.float64))
        updates.append(np.asarray(update["kernel"]))
    ratio = finals[1] / finals[0]
    assert abs(ratio.mean() - 1) < 0.005 and np.abs(ratio - 1).max() < 0.1
    np.testing.assert_allclose(updates[1], updates[0], rtol=0.06)


def test_rounding_at_random_is_right_in_the_mean() -> None:
    x = jnp.full(100_000, 1.0 + 2**-10)  # an eighth of the way to the next bfloat16
    rounded = np.asarray(_rounded(x, jnp.uint32(7)), np.float32)
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2**-7} and abs((rounded > 1).mean() - 0.125) < 0.005
    other = np.asarray(_rounded(x, jnp.uint32(8)), np.float32)
    both = ((rounded > 1) & (other > 1)).mean()  # two updates round independently of each other
    assert abs(both - 0.125**2) < 0.002
    neighbours = ((rounded[1:] > 1) & (rounded[:-1] > 1)).mean()
    assert abs(neighbours - 0.125**2) < 0.002
    special = jnp.array([0.0, -3.0, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(_rounded(special, jnp.uint32(1)).astype(jnp.float32), special)

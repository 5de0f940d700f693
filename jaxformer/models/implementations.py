"""Which implementation of attention runs: a table of what each can do, and the order in which `auto` asks them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxformer.errors import UserError
from jaxformer.models.config import Execution, TransformerConfig

# Devices as this table tells them apart, and what errors call them. cuDNN's kernels need compute capability 8.0.
DEVICES = {"cpu": "a CPU", "gpu": "an NVIDIA GPU from Ampere on", "other gpu": "another GPU", "tpu": "a TPU"}
FUSED_ATTENTION = ("cudnn", "splash", "flash")  # kernels that never hold scores [B, H, T, S]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """What one implementation can do. The defaults are those of our own forms, which can do everything."""

    devices: tuple[str, ...] = tuple(DEVICES)
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")  # of activations
    head_multiple: int = 1  # what head_dim must be a multiple of
    largest_head: int | None = None  # the largest head_dim
    lane_heads: bool = False  # a head_dim above 128 must be a multiple of 128
    even_with_scores: bool = False  # rows must have even lengths where a bias or a mask is added to the scores
    bias: bool = True  # a position bias [1, H, T, S], with its gradient
    bias_with_mask: bool = True  # and that where who sees whom cannot be said without a mask
    window: bool = True  # banded layers
    prefix: bool = True  # visibility "prefix"
    dropout: bool = True  # of attention weights
    decoding: bool = True  # over a cache


# Packed rows, right padding and cross-attention are no columns: all of them can do these.
IMPLEMENTATIONS: dict[str, Implementation] = {
    # jax.nn.dot_product_attention(implementation="cudnn"). From Hopper on heads may have 256, which is not counted on.
    "cudnn": Implementation(
        devices=("gpu",), dtypes=("float16", "bfloat16"), head_multiple=8, largest_head=128, even_with_scores=True,
        bias_with_mask=False, dropout=False, decoding=False,
    ),
    # jax.experimental.pallas.ops.tpu.splash_attention, which leaves out blocks that nobody sees.
    "splash": Implementation(
        devices=("tpu",), dtypes=("float32", "bfloat16"), bias=False, prefix=False, dropout=False, decoding=False
    ),
    # jax.experimental.pallas.ops.tpu.flash_attention
    "flash": Implementation(
        devices=("tpu",), dtypes=("float32", "bfloat16"), lane_heads=True, window=False, prefix=False, dropout=False,
        decoding=False,
    ),
    "blockwise": Implementation(),  # ours, models/blockwise.py
    "einsum": Implementation(),  # ours: scores [B, H, T, S] as a whole
    "xla": Implementation(dropout=False),  # jax.nn.dot_product_attention(implementation="xla")
}  # fmt: skip

# Whom `auto` asks on each device, in this order, and from how many queries on. On CPU 256 is where blockwise gets
# faster (benchmarks/results/attention-cpu.md). Elsewhere nothing was measured; 512 is where scores take more memory
# than all else of a layer: 5 H T bytes a token against 34 d_model (Korthikanti et al. 2022, equation 2; 435).
PREFERRED: dict[str, dict[str, int]] = {
    "cpu": {"blockwise": 256, "einsum": 0},
    "gpu": {"cudnn": 0, "blockwise": 512, "einsum": 0},
    "other gpu": {"blockwise": 512, "einsum": 0},
    "tpu": {"splash": 0, "flash": 0, "blockwise": 512, "einsum": 0},
}
ATTENTIONS = ("auto", *IMPLEMENTATIONS)  # what `training.attention` takes

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # {array: (shape of one example, dtype)}


class Wanted(NamedTuple):
    """What one attention of a model asks of its implementation."""

    device: str  # one of DEVICES; "": not known yet
    dtype: str  # of activations; "": not known yet
    head_dim: int
    queries: int  # tokens of the row that reads
    keys: int  # and of the row that is read
    visibility: str
    window: int | None = None
    packed: bool = True
    bias: bool = False
    dropout: bool = False
    decoding: bool = False

    @property
    def needs_mask(self) -> bool:
        """Whether who sees whom takes a mask, where a kernel knows lengths, causality and a causal window alone."""
        banded = self.window is not None and self.visibility != "causal"
        return self.packed or banded or self.visibility == "prefix"


class Choice(NamedTuple):
    """An implementation, what it was chosen for, and why those that come before it in the table cannot do that."""

    name: str
    wanted: Wanted
    refused: dict[str, str]

    @property
    def reads_mask(self) -> bool:
        """Whether it is to be given a mask [B, 1, T, S]."""
        return self.name not in FUSED_ATTENTION or (self.name == "cudnn" and self.wanted.needs_mask)


def refusal(name: str, wanted: Wanted) -> str:
    """Return why an implementation cannot do what is wanted; "" if it can."""
    can, head_dim = IMPLEMENTATIONS[name], wanted.head_dim
    odd = wanted.queries % 2 > 0 or wanted.keys % 2 > 0
    largest = can.largest_head or head_dim
    reasons = {
        f"needs {' or '.join(DEVICES[device] for device in can.devices)}": bool(wanted.device)
        and wanted.device not in can.devices,
        f"computes in {' or '.join(can.dtypes)}, not in {wanted.dtype}": bool(wanted.dtype)
        and wanted.dtype not in can.dtypes,
        f"needs a head size of a multiple of {can.head_multiple}, not {head_dim}": head_dim % can.head_multiple > 0,
        f"has heads of {largest} at most, not {head_dim}": head_dim > largest,
        f"needs a head size above 128 to be a multiple of it, not {head_dim}": can.lane_heads
        and head_dim > 128
        and head_dim % 128 > 0,
        "has no position bias": wanted.bias and not can.bias,
        "takes a position bias only where lengths and causality say who sees whom": wanted.bias
        and wanted.needs_mask
        and not can.bias_with_mask,
        f"needs even lengths with a position bias or a mask, not {wanted.queries} and {wanted.keys}": odd
        and can.even_with_scores
        and (wanted.bias or wanted.needs_mask),
        "has no window": wanted.window is not None and not can.window,
        "has no prefix that sees all of itself": wanted.visibility == "prefix" and not can.prefix,
        "has no attention dropout": wanted.dropout and not can.dropout,
        "reads no cache": wanted.decoding and not can.decoding,
    }
    return "; ".join(reason for reason, applies in reasons.items() if applies)


def choose(name: str, wanted: Wanted) -> Choice:
    """Return the implementation that `training.attention` means by `name` for what is wanted on a known device.

    One that is named and cannot do it raises UserError with the reason; decoding, which is no matter of training, takes
    what `auto` would instead.
    """
    if name != "auto" and not (wanted.decoding and refusal(name, wanted)):
        check_attention(name, wanted)
        return Choice(name, wanted, {})
    refused = {}
    for one, least in PREFERRED[wanted.device].items():
        if wanted.queries < least:
            continue
        if not (reason := refusal(one, wanted)):
            break
        refused[one] = reason
    return Choice(one, wanted, refused)


def check_attention(name: str, wanted: Wanted) -> None:
    """Raise UserError for an implementation that is named and cannot do what is wanted."""
    reason = "" if name == "auto" else refusal(name, wanted)
    if reason:
        remedy = "set model.attention_dropout=0 or use auto" if "dropout" in reason else "use auto"
        raise UserError(f"training.attention: '{name}' {reason}; {remedy}")


def wanted_by(
    config: TransformerConfig, execution: Execution, visibility: str, queries: int, keys: int | None = None,
    *, banded: bool = False, decoding: bool = False,
) -> Wanted:  # fmt: skip
    """Return what self-attention of a stack asks for or, where it is given `keys`, cross-attention."""
    cross = keys is not None
    return Wanted(
        execution.device or device_here(),
        execution.dtype,
        config.head_dim,
        queries,
        queries if keys is None else keys,
        "full" if cross else visibility,
        config.attention_window if banded and not cross else None,
        execution.packed,
        config.position == "relative" and not cross,
        config.attention_dropout > 0,
        decoding,
    )


def wanted_attentions(config: TransformerConfig, execution: Execution, shapes: Shapes) -> dict[str, Wanted]:
    """Return what each kind of attention of a model asks for, by what it is called, given the shapes of its batches."""
    row = shapes["inputs"][0][-1]

    def own(visibility: str, length: int, stack: str = "") -> dict[str, Wanted]:
        kinds = {True: "banded attention", False: "attention"}
        return {
            f"{stack}{kinds[banded]}": wanted_by(config, execution, visibility, length, banded=banded)
            for banded in sorted(set(config.banded_layers))
        }

    if config.family != "encoder_decoder":
        return own(config.visibility, row)
    source = shapes["encoder_inputs"][0][-1]
    cross = {"cross-attention": wanted_by(config, execution, "full", row, source)}
    return own("full", source, "encoder ") | own("causal", row, "decoder ") | cross


def chosen_attentions(config: TransformerConfig, execution: Execution, shapes: Shapes) -> dict[str, Choice]:
    """Return the implementation of each kind of attention (see `wanted_attentions`)."""
    wanted = wanted_attentions(config, execution, shapes)
    return {kind: choose(execution.attention, wants) for kind, wants in wanted.items()}


def check_attentions(name: str, config: TransformerConfig, dtype: str, packed: bool, phases: Sequence[Shapes]) -> None:
    """Raise UserError, before any device is known, for an implementation that is named and cannot do what a model asks
    on the batches of a run, given the shapes of each phase; a `dtype` that is the device's to say is auto."""
    execution = Execution(dtype="" if dtype == "auto" else dtype, packed=packed, device="cpu")
    for shapes in phases:
        for wanted in wanted_attentions(config, execution, shapes).values():
            check_attention(name, wanted._replace(device=""))


def attentions_in_words(choices: Mapping[str, Choice]) -> list[str]:
    """Return a line for each kind of attention: its implementation, and why none before it in the table."""
    lines = []
    for kind, (name, wanted, refused) in choices.items():
        tokens = f"{wanted.queries}" if wanted.queries == wanted.keys else f"{wanted.queries} x {wanted.keys}"
        reasons = "".join(f"; {other} {reason}" for other, reason in refused.items())
        lines.append(f"{kind} {name} ({tokens} tokens on {wanted.device}){reasons}")
    return lines


def device_for(name: str) -> str:
    """Return which of DEVICES an implementation needs; "" where it runs on several."""
    devices = () if name == "auto" else IMPLEMENTATIONS[name].devices
    return devices[0] if len(devices) == 1 else ""


def device_here() -> str:
    """Return which of DEVICES computations run on."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend if backend in DEVICES else "other gpu"
    capability = getattr(jax.devices()[0], "compute_capability", "")  # of ROCm's devices a name
    numbers = capability.split(".")
    return "gpu" if all(number.isdecimal() for number in numbers) and int(numbers[0]) >= 8 else "other gpu"

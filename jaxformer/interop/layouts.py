"""What a table of a Hugging Face model type says, and the places that it gives our parameters.

A type's table names, for each of our modules or arrays, theirs; `{}` is the number of the layer. What it does not name
has no place there. Kernels are [in, out] here and [out, in] there, but for the two GPTs, which also fuse query, key and
value into one array.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.models import PRESETS, TransformerConfig

# Fields that change how a model is trained or run, not what it computes from given parameters.
_NEUTRAL = (
    "vocab_multiple", "initialization", "dropout", "attention_dropout", "attention_output_dropout", "hidden_dropout",
    "final_dropout", "relative_buckets", "relative_max_distance", "attention_window", "rotary_base", "decoder_start",
)  # fmt: skip
_SIZES = ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim", "num_layers", "max_length")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

Modules = Mapping[str, str | tuple[str, int]]  # ours -> theirs, or (theirs, which third of it)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One model type. Its slots are those of `preset`, but for what `keys` and `values` read from config.json."""

    model_type: str
    preset: str
    keys: Mapping[str, tuple[str, ...]]  # our field -> its keys in config.json; sizes must agree where there are two
    body: Callable[[TransformerConfig], Modules]
    heads: Modules = dataclasses.field(default_factory=dict)
    classes: Mapping[tuple[str, ...], tuple[str, str]]  # what stands on the body -> (class, prefix of the body's names)
    tied: Mapping[str, tuple[str, ...]]  # tensor -> names under which files may hold it, too or instead
    ignored: tuple[str, ...] = ()  # patterns of names that hold no parameter
    zeros: tuple[str, ...] = ()  # buffers [1, vocab_size] that their class loads beside the parameters
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys that must have this value or be absent
    activations: Mapping[str, str] = dataclasses.field(default_factory=lambda: _ACTIVATIONS)
    transposed: bool = True  # kernels are [out, in]
    free: tuple[str, ...] = ()  # slots that it can have otherwise than the preset, without a key of their own
    d_ff_multiple: int = 0  # times d_model, where config.json says no d_ff
    starts_with: str = "start"  # the role of the token that config.json calls bos
    demanded: tuple[str, ...] = ()  # keys whose absence means another thing there than here

    @property
    def slots(self) -> dict[str, Any]:
        """The fields in which a model of this type cannot differ from its preset."""
        config = TransformerConfig(**PRESETS[self.preset])
        free = {*_SIZES, *_NEUTRAL, *self.keys, *self.free}
        return {name: value for name, value in vars(config).items() if name not in free}


@dataclasses.dataclass(frozen=True)
class Piece:
    """The place of one array, or of one layer of it, in their files."""

    name: str
    path: str
    layer: int | None
    third: int | None  # the columns that are ours, where query, key and value are fused
    transposed: bool


def pieces(
    layout: Layout, config: TransformerConfig, shapes: Mapping[str, tuple[int, ...]], prefix: str = ""
) -> Iterator[Piece]:
    """Yield the place of every array of the model. Raises UserError for one that this type has no place for."""
    modules = {ours: _prefixed(theirs, prefix) for ours, theirs in layout.body(config).items()} | dict(layout.heads)
    for path, shape in shapes.items():
        parent, _, leaf = path.rpartition("/")
        theirs = modules.get(path) or modules.get(parent)
        if theirs is None:
            raise UserError(f"Hugging Face's {layout.model_type} has no place for the parameter {path}")
        name, third = (theirs, None) if isinstance(theirs, str) else theirs
        if path not in modules:
            name += ".bias" if leaf == "bias" else ".weight"
        transposed = leaf == "kernel" and (layout.transposed or not path.startswith(("encoder/", "decoder/")))
        layers = range(shape[0]) if "/layers/" in path else (None,)
        for layer in layers:
            yield Piece(name if layer is None else name.format(layer), path, layer, third, transposed)


def _prefixed(theirs: str | tuple[str, int], prefix: str) -> str | tuple[str, int]:
    return prefix + theirs if isinstance(theirs, str) else (prefix + theirs[0], theirs[1])

"""What a table of a Hugging Face model type says, and the places that it gives our parameters.

A type's table names, for each of our modules or arrays, theirs; `{}` is the number of the layer. What it does not name
has no place there. Kernels are [in, out] here and [out, in] there, but for the two GPTs. One array of theirs may hold
several of ours: query, key and value of the GPTs, and the start and end of an answer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxformer.errors import UserError
from jaxformer.models import PRESETS, Model, TransformerConfig

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

Share = tuple[str, int, int]  # (theirs, which part of it, how many equal parts it has)
Modules = Mapping[str, str | Share]  # ours -> theirs

# What can stand on a body: predictions of tokens, and heads: of two sentences' order, of a row (classes or a number),
# of several choices, of every token (tags), of the start and end of an answer.
STANDING = ("tokens", "next_sentence", "label", "choices", "tags", "span")
_HEADS = {
    ("next_sentence", "row"): "next_sentence",
    ("label", "row"): "label",
    ("label", "choices"): "choices",
    ("label", "tokens"): "tags",
    ("start", "tokens"): "span",
    ("end", "tokens"): "span",
}


def standing(model: Model) -> tuple[str, ...]:
    """Return what stands on a model's body, in the order of STANDING. Raises UserError for what no class there has."""
    found = {"tokens"} if model.predicts_tokens else set()
    for name, _, reads in model.heads:
        if (name, reads) not in _HEADS:
            raise UserError(f"Hugging Face has no class with a head '{name}' that reads {reads}")
        found.add(_HEADS[name, reads])
    return tuple(what for what in STANDING if what in found)


class Class(NamedTuple):
    """One of their classes."""

    name: str
    prefix: str = ""  # of the body's names
    # The keys of config.json with the dropout before its head, the first that is set, and what it is without one.
    dropout: Mapping[str, float | None] = {}
    required: Mapping[str, Any] = {}  # keys that must have this value or be absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One model type. Its slots are those of `preset`, but for what `keys` and `values` read from config.json."""

    model_type: str
    preset: str
    keys: Mapping[str, tuple[str, ...]]  # our field -> its keys in config.json; sizes must agree where there are two
    body: Callable[[TransformerConfig], Modules]
    heads: Mapping[str, Modules] = dataclasses.field(default_factory=dict)  # of each of STANDING, what is its own
    classes: Mapping[tuple[str, ...], Class]  # by what stands on the body
    tied: Mapping[str, tuple[str, ...]]  # tensor -> names under which files may hold it, too or instead
    ignored: tuple[str, ...] = ()  # patterns of names that hold no parameter
    # Of one of STANDING: biases [1, vocab_size] or [1] that their class has, and ours only where they are not all 0.
    zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
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
    part: int  # which of the equal parts of theirs is ours
    parts: int
    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of theirs along which its parts follow one another: that of the outputs."""
        return 0 if self.transposed else -1

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of theirs, given that of (a layer of) ours."""
        shape = (*shape[:-1], self.parts * shape[-1]) if self.parts > 1 else shape
        return shape[::-1] if self.transposed else shape


def pieces(
    layout: Layout,
    config: TransformerConfig,
    shapes: Mapping[str, tuple[int, ...]],
    classes: tuple[str, ...],
    prefix: str = "",
) -> Iterator[Piece]:
    """Yield the place of every array of the model, on whose body `classes` stand.

    Raises UserError for an array that this type has no place for.
    """
    modules: dict[str, str | Share] = {ours: _prefixed(theirs, prefix) for ours, theirs in layout.body(config).items()}
    for what in classes:
        modules |= layout.heads.get(what, {})
    for path, shape in shapes.items():
        parent, _, leaf = path.rpartition("/")
        theirs = modules.get(path) or modules.get(parent)
        if theirs is None:
            raise UserError(f"Hugging Face's {layout.model_type} has no place for the parameter {path}")
        name, part, parts = (theirs, 0, 1) if isinstance(theirs, str) else theirs
        if path not in modules:
            name += ".bias" if leaf == "bias" else ".weight"
        transposed = leaf == "kernel" and (layout.transposed or not path.startswith(("encoder/", "decoder/")))
        layers = range(shape[0]) if "/layers/" in path else (None,)
        for layer in layers:
            yield Piece(name if layer is None else name.format(layer), path, layer, part, parts, transposed)


def _prefixed(theirs: str | Share, prefix: str) -> str | Share:
    return prefix + theirs if isinstance(theirs, str) else (prefix + theirs[0], *theirs[1:])

"""`TransformerConfig`: sizes and house-style slots of a model. What differs between systems is here.

Imports neither jax nor flax, so presets and experiment configs can be read anywhere.
"""

import dataclasses
from typing import Any

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError

FAMILIES = ("decoder_only", "encoder_only", "encoder_decoder")

# The closed set of values of every slot that takes a name.
SLOTS: dict[str, tuple[str, ...]] = {
    "family": FAMILIES,
    "norm": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post"),
    "position": ("learned", "sinusoidal", "sinusoidal_tensor2tensor", "relative", "rotary", "none"),
    "activation": ("relu", "gelu", "gelu_tanh", "silu"),
    "biases": ("all", "feed_forward", "none"),
    "embedding_scale": ("none", "sqrt_d_model"),
    "attention_scale": ("inverse_sqrt_head_dim", "none"),
    "logit_scale": ("none", "inverse_sqrt_d_model"),
    "attention_pattern": ("dense", "banded", "dense_first", "banded_first"),
    "visibility": ("full", "causal", "prefix"),
    "output_head": ("linear", "biased", "transform"),
    "pooler": ("none", "tanh", "relu", "dropout_tanh"),
    "decoder_start": ("pad", "end"),
    "initialization": ("gpt", "gpt2", "bert", "transformer", "t5"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and slots of one model. Sizes are per stack; `vocab_size` is the paper's and all counts use it."""

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int
    num_layers: int
    max_length: int  # places that the learned position table knows, and the longest sequence that data may ask for
    vocab_multiple: int = 1  # stored rows are rounded up to this; the extra ones are masked out of softmax and loss
    norm: str = "layer_norm"
    norm_placement: str = "pre"  # post: norm(x + f(x)), no final norm; pre: x + f(norm(x)), final norm per stack
    norm_epsilon: float = 1e-5
    embedding_norm: bool = False  # a norm after the summed embeddings (BERT, BART)
    position: str = "learned"
    position_offset: int = 0  # unused rows of the learned position table before place 0 (BART: 2)
    rotary_base: float = 10_000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    token_types: int = 0  # rows of the segment table (BERT: 2)
    activation: str = "gelu"
    gated: bool = False  # act(x W) * (x U), as in T5 v1.1
    biases: str = "all"  # feed_forward: none in query, key, value and output projections (tensor2tensor)
    embedding_scale: str = "none"
    attention_scale: str = "inverse_sqrt_head_dim"
    logit_scale: str = "none"
    tied_embeddings: bool = True  # the softmax shares the token table
    attention_pattern: str = "dense"  # dense_first, banded_first: layers alternate (GPT-3)
    attention_window: int = 256  # a banded layer sees this many positions, its own included, on each visible side
    visibility: str = "causal"  # of the only stack, or of the decoder; an encoder-decoder's encoder is always full
    output_head: str = "linear"  # biased: and a bias; transform: Dense, activation, norm, projection, bias (BERT)
    pooler: str = "none"  # a dense layer with this activation before every per-row head; dropout_tanh: dropout, too
    head_bias: bool = True  # of the per-row heads' classifiers
    decoder_start: str = "pad"  # the token that an encoder-decoder's decoder reads first
    source_layers: int = 0  # of an encoder in front, whose output takes the place of the encoder's embeddings (BART)
    initialization: str = "gpt"
    dropout: float = 0.1  # embeddings and sublayer outputs
    attention_dropout: float = 0.1  # attention probabilities
    attention_output_dropout: float | None = None  # None: as `dropout` (DistilBERT: none)
    hidden_dropout: float = 0.0  # inside the feed-forward layer (T5)
    final_dropout: float = 0.0  # after a stack's final norm (T5)

    def __post_init__(self) -> None:
        for slot, choices in SLOTS.items():
            check_choice(f"model.{slot}", getattr(self, slot), choices)
        sizes = ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim", "num_layers", "max_length", "vocab_multiple")
        for size in sizes:
            check_range(f"model.{size}", getattr(self, size), at_least=1)
        for rate in ("dropout", "attention_dropout", "attention_output_dropout", "hidden_dropout", "final_dropout"):
            if getattr(self, rate) is not None:
                check_range(f"model.{rate}", getattr(self, rate), at_least=0, below=1)
        for size in ("position_offset", "token_types", "norm_epsilon", "source_layers"):
            check_range(f"model.{size}", getattr(self, size), at_least=0)
        if self.position == "relative":
            check_range("model.relative_buckets", self.relative_buckets, at_least=4)
            # An encoder has half of the buckets for each direction, and half of those for exact distances.
            exact = self.relative_buckets // 2
            if not self.relative_max_distance > exact:
                raise UserError(
                    f"model.relative_max_distance: {self.relative_max_distance} must exceed half of "
                    f"model.relative_buckets, {self.relative_buckets}"
                )
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(f"model.head_dim: {self.head_dim} must be even for rotary positions")
        if self.position.startswith("sinusoidal") and self.d_model % 2:
            raise UserError(f"model.d_model: {self.d_model} must be even for sinusoidal positions")
        if self.family == "encoder_decoder" and self.visibility != "causal":
            raise UserError(f"model.visibility: an encoder_decoder's decoder is causal, not '{self.visibility}'")
        if self.source_layers and self.family != "encoder_decoder":
            raise UserError(
                f"model.source_layers: {self.source_layers}, but the model is {self.family}; only an encoder_decoder "
                "takes a further encoder in place of its encoder's embeddings; set it to 0"
            )
        if self.family == "decoder_only" and self.visibility == "full":
            raise UserError("model.visibility: a decoder_only model cannot see what it predicts; use 'causal'")

    @property
    def stored_vocab_size(self) -> int:
        """Rows of the stored token table: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def banded_layers(self) -> tuple[bool, ...]:
        """Whether each layer's self-attention is banded (GPT-3, section 2.1: dense and banded layers alternate)."""
        pattern = self.attention_pattern
        alternating = {"dense_first": 1, "banded_first": 0}
        if pattern in alternating:
            return tuple(layer % 2 == alternating[pattern] for layer in range(self.num_layers))
        return (pattern == "banded",) * self.num_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model is run, not what it computes: equal parameters and, to rounding, equal results for every value."""

    dtype: str = "float32"  # of activations and matrix products; parameters stay float32
    unroll: int = 0  # layers per iteration of the scan: 1 compiles fastest; 0 or num_layers: no scan, fastest steps
    remat: str = "none"  # none, dots (keep matrix products), full (keep only each layer's input)
    attention: str = "auto"  # one of models/implementations.py; auto: the first there that can do what is asked
    packed: bool = True  # rows may hold several segments; else each is one, with padding behind it
    device: str = ""  # the kind that attention is chosen for: cpu, gpu, tpu; "": the one at hand
    logits_chunk: int = 0  # positions of a row whose logits the loss holds at a time; 0: all of them
    mesh: Any = None  # a jax.sharding.Mesh that activations are split over; None: wherever their inputs are

"""The tables: where each Hugging Face model type keeps what a `TransformerConfig` and its parameters say."""

from collections.abc import Callable

from jaxformer.interop.layouts import Class, Layout, Modules, Share
from jaxformer.models import TransformerConfig

ATTENTION = ("query", "key", "value", "output")


def _attention(ours: str, theirs: str, names: tuple[str, ...]) -> dict[str, str]:
    return {f"{ours}/{part}": f"{theirs}.{name}" for part, name in zip(ATTENTION, names, strict=True)}


def _fused(ours: str, theirs: str) -> dict[str, str | Share]:
    thirds = {f"{ours}/{part}": (f"{theirs}.c_attn", third, 3) for third, part in enumerate(ATTENTION[:3])}
    return thirds | {f"{ours}/output": f"{theirs}.c_proj"}


# The heads of most types.
_LABEL = {"row_heads/label": "classifier"}
_TAGS = {"token_heads/label": "classifier"}
_SPAN: Modules = {"token_heads/start": ("qa_outputs", 0, 2), "token_heads/end": ("qa_outputs", 1, 2)}


def _bert(config: TransformerConfig) -> Modules:
    layer, embeddings = "encoder.layer.{}", "embeddings"
    return {
        "embedding/tokens": f"{embeddings}.word_embeddings.weight",
        "encoder/inputs/positions": f"{embeddings}.position_embeddings.weight",
        "encoder/inputs/token_types": f"{embeddings}.token_type_embeddings.weight",
        "encoder/inputs/norm": f"{embeddings}.LayerNorm",
        **_attention(
            "encoder/layers/attention",
            f"{layer}.attention",
            ("self.query", "self.key", "self.value", "output.dense"),
        ),
        "encoder/layers/attention_norm": f"{layer}.attention.output.LayerNorm",
        "encoder/layers/feed_forward/input": f"{layer}.intermediate.dense",
        "encoder/layers/feed_forward/output": f"{layer}.output.dense",
        "encoder/layers/feed_forward_norm": f"{layer}.output.LayerNorm",
        "row_heads/pooler": "pooler.dense",
    }


def _distilbert(config: TransformerConfig) -> Modules:
    layer = "transformer.layer.{}"
    return {
        "embedding/tokens": "embeddings.word_embeddings.weight",
        "encoder/inputs/positions": "embeddings.position_embeddings.weight",
        "encoder/inputs/norm": "embeddings.LayerNorm",
        **_attention("encoder/layers/attention", f"{layer}.attention", ("q_lin", "k_lin", "v_lin", "out_lin")),
        "encoder/layers/attention_norm": f"{layer}.sa_layer_norm",
        "encoder/layers/feed_forward/input": f"{layer}.ffn.lin1",
        "encoder/layers/feed_forward/output": f"{layer}.ffn.lin2",
        "encoder/layers/feed_forward_norm": f"{layer}.output_layer_norm",
    }


def _gpts(tokens: str, positions: str) -> Callable[[TransformerConfig], Modules]:
    def body(config: TransformerConfig) -> Modules:
        layer = "h.{}"
        return {
            "embedding/tokens": f"{tokens}.weight",
            "decoder/inputs/positions": f"{positions}.weight",
            **_fused("decoder/layers/attention", f"{layer}.attn"),
            "decoder/layers/attention_norm": f"{layer}.ln_1",
            "decoder/layers/feed_forward/input": f"{layer}.mlp.c_fc",
            "decoder/layers/feed_forward/output": f"{layer}.mlp.c_proj",
            "decoder/layers/feed_forward_norm": f"{layer}.ln_2",
            "decoder/final_norm": "ln_f",
        }

    return body


def _bart(config: TransformerConfig) -> Modules:
    modules: dict[str, str] = {"embedding/tokens": "shared.weight"}
    for stack in ("encoder", "decoder"):
        ours, theirs = f"{stack}/layers", f"{stack}.layers.{{}}"
        modules |= {
            f"{stack}/inputs/positions": f"{stack}.embed_positions.weight",
            f"{stack}/inputs/norm": f"{stack}.layernorm_embedding",
            f"{ours}/attention_norm": f"{theirs}.self_attn_layer_norm",
            f"{ours}/cross_attention_norm": f"{theirs}.encoder_attn_layer_norm",
            f"{ours}/feed_forward/input": f"{theirs}.fc1",
            f"{ours}/feed_forward/output": f"{theirs}.fc2",
            f"{ours}/feed_forward_norm": f"{theirs}.final_layer_norm",
        }
        for attention, name in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
            parts = ("q_proj", "k_proj", "v_proj", "out_proj")
            modules |= _attention(f"{ours}/{attention}", f"{theirs}.{name}", parts)
    return modules


def _t5(config: TransformerConfig) -> Modules:
    modules: dict[str, str] = {"embedding/tokens": "shared.weight"}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        ours, theirs = f"{stack}/layers", f"{stack}.block.{{}}.layer"
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        modules |= {
            f"{stack}/relative_bias": table,
            f"{ours}/attention_norm": f"{theirs}.0.layer_norm",
            f"{ours}/cross_attention_norm": f"{theirs}.1.layer_norm",
            f"{ours}/feed_forward/input": f"{theirs}.{last}.DenseReluDense.{'wi_0' if config.gated else 'wi'}",
            f"{ours}/feed_forward/gate": f"{theirs}.{last}.DenseReluDense.wi_1",
            f"{ours}/feed_forward/output": f"{theirs}.{last}.DenseReluDense.wo",
            f"{ours}/feed_forward_norm": f"{theirs}.{last}.layer_norm",
            f"{stack}/final_norm": f"{stack}.final_layer_norm",
        }
        for attention, name in (("attention", "0.SelfAttention"), ("cross_attention", "1.EncDecAttention")):
            modules |= _attention(f"{ours}/{attention}", f"{theirs}.{name}", ("q", "k", "v", "o"))
    return modules


_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_PAIRED = {  # an encoder-decoder whose stacks have keys of their own
    "vocab_size": ("vocab_size",),
    "d_model": ("d_model",),
    "d_ff": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "num_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "num_layers": ("encoder_layers", "decoder_layers"),
    "max_length": ("max_position_embeddings",),
    "activation": ("activation_function",),
    "embedding_scale": ("scale_embedding",),
    "dropout": ("dropout",),
    "attention_dropout": ("attention_dropout",),
    "hidden_dropout": ("activation_dropout",),
}
_DECODER_SIZES = {
    "vocab_size": ("vocab_size",),
    "d_model": ("n_embd",),
    "num_heads": ("n_head",),
    "num_layers": ("n_layer",),
    "max_length": ("n_positions",),
    "norm_epsilon": ("layer_norm_epsilon",),
    "dropout": ("resid_pdrop", "embd_pdrop"),
    "attention_dropout": ("attn_pdrop",),
}
# BART's and T5's classifier.
_DENSE_LABEL = {"row_heads/pooler": "classification_head.dense", "row_heads/label": "classification_head.out_proj"}
_BERT_DROPOUT = {"classifier_dropout": None, "hidden_dropout_prob": 0.1}
# The GPTs' head for several choices is built by keys: this is the form that GPT's paper has.
_SUMMARY = "multiple_choice_head.summary"
_SUMMARIZED = (
    {"summary_first_dropout": 0.1},
    {
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "summary_proj_to_labels": True,
        "summary_activation": None,
        "summary_last_dropout": 0.0,
    },
)


def _with_tokens(what: str, theirs: Class) -> dict[tuple[str, ...], Class]:
    """The same class with and without predictions of tokens, which its decoder can always make."""
    return {(what,): theirs, ("tokens", what): theirs}


_UNSUPPORTED = {"is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}

LAYOUTS: dict[str, Layout] = {
    layout.model_type: layout
    for layout in (
        Layout(
            model_type="bert",
            preset="bert_base",
            keys={
                "vocab_size": ("vocab_size",),
                "d_model": ("hidden_size",),
                "d_ff": ("intermediate_size",),
                "num_heads": ("num_attention_heads",),
                "num_layers": ("num_hidden_layers",),
                "max_length": ("max_position_embeddings",),
                "token_types": ("type_vocab_size",),
                "norm_epsilon": ("layer_norm_eps",),
                "activation": ("hidden_act",),
                "dropout": ("hidden_dropout_prob",),
                "attention_dropout": ("attention_probs_dropout_prob",),
            },
            body=_bert,
            heads={
                "tokens": {
                    "vocabulary/transform": "cls.predictions.transform.dense",
                    "vocabulary/norm": "cls.predictions.transform.LayerNorm",
                    "vocabulary/bias": "cls.predictions.bias",
                },
                "next_sentence": {"row_heads/next_sentence": "cls.seq_relationship"},
                "label": _LABEL,
                "choices": _LABEL,
                "tags": _TAGS,
                "span": _SPAN,
            },
            classes={
                ("tokens", "next_sentence"): Class("BertForPreTraining", "bert."),
                ("tokens",): Class("BertForMaskedLM", "bert."),
                ("label",): Class("BertForSequenceClassification", "bert.", _BERT_DROPOUT),
                ("choices",): Class("BertForMultipleChoice", "bert.", _BERT_DROPOUT),
                ("tags",): Class("BertForTokenClassification", "bert.", _BERT_DROPOUT),
                ("span",): Class("BertForQuestionAnswering", "bert."),
            },
            tied={
                "embeddings.word_embeddings.weight": ("cls.predictions.decoder.weight",),
                "cls.predictions.bias": ("cls.predictions.decoder.bias",),
            },
            ignored=(r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)"),
            required={"position_embedding_type": "absolute", **_UNSUPPORTED},
        ),
        Layout(
            model_type="distilbert",
            preset="distilbert_base",
            keys={
                "vocab_size": ("vocab_size",),
                "d_model": ("dim",),
                "d_ff": ("hidden_dim",),
                "num_heads": ("n_heads",),
                "num_layers": ("n_layers",),
                "max_length": ("max_position_embeddings",),
                "activation": ("activation",),
                "dropout": ("dropout",),
                "attention_dropout": ("attention_dropout",),
            },
            body=_distilbert,
            heads={
                "tokens": {
                    "vocabulary/transform": "vocab_transform",
                    "vocabulary/norm": "vocab_layer_norm",
                    "vocabulary/bias": "vocab_projector.bias",
                },
                "label": {"row_heads/pooler": "pre_classifier", **_LABEL},
                "choices": {"row_heads/pooler": "pre_classifier", **_LABEL},
                "tags": _TAGS,
                "span": _SPAN,
            },
            classes={
                ("tokens",): Class("DistilBertForMaskedLM", "distilbert."),
                ("label",): Class("DistilBertForSequenceClassification", "distilbert.", {"seq_classif_dropout": 0.2}),
                ("choices",): Class("DistilBertForMultipleChoice", "distilbert.", {"seq_classif_dropout": 0.2}),
                ("tags",): Class("DistilBertForTokenClassification", "distilbert.", {"dropout": 0.1}),
                ("span",): Class("DistilBertForQuestionAnswering", "distilbert.", {"qa_dropout": 0.1}),
            },
            tied={"embeddings.word_embeddings.weight": ("vocab_projector.weight",)},
            ignored=(r"embeddings\.position_ids",),
            required={"tie_word_embeddings": True},
        ),
        Layout(
            model_type="openai-gpt",
            preset="gpt",
            keys=_DECODER_SIZES | {"activation": ("afn",)},
            body=_gpts("tokens_embed", "positions_embed"),
            heads={"label": {"row_heads/label": "score"}, "choices": {"row_heads/label": _SUMMARY}},
            classes={
                ("tokens",): Class("OpenAIGPTLMHeadModel", "transformer."),
                **_with_tokens("label", Class("OpenAIGPTForSequenceClassification", "transformer.")),
                **_with_tokens("choices", Class("OpenAIGPTDoubleHeadsModel", "transformer.", *_SUMMARIZED)),
            },
            zeros={"choices": f"{_SUMMARY}.bias"},
            tied={"tokens_embed.weight": ("lm_head.weight",)},
            ignored=(r"position_ids", r"h\.\d+\.attn\.bias"),
            required={"tie_word_embeddings": True},
            # This type's "gelu" is the tanh form.
            activations={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
            transposed=False,
            d_ff_multiple=4,
            starts_with="end",
        ),
        Layout(
            model_type="gpt2",
            preset="gpt2_124m",
            keys=_DECODER_SIZES | {"activation": ("activation_function",), "d_ff": ("n_inner",)},
            body=_gpts("wte", "wpe"),
            heads={
                "label": {"row_heads/label": "score"},
                "choices": {"row_heads/label": _SUMMARY},
                "tags": _TAGS,
                "span": _SPAN,
            },
            classes={
                ("tokens",): Class("GPT2LMHeadModel", "transformer."),
                **_with_tokens("label", Class("GPT2ForSequenceClassification", "transformer.")),
                **_with_tokens("choices", Class("GPT2DoubleHeadsModel", "transformer.", *_SUMMARIZED)),
                ("tags",): Class("GPT2ForTokenClassification", "transformer.", {"classifier_dropout": 0.1}),
                ("span",): Class("GPT2ForQuestionAnswering", "transformer."),
            },
            zeros={"choices": f"{_SUMMARY}.bias"},
            tied={"wte.weight": ("lm_head.weight",)},
            ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
            required={
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
                "tie_word_embeddings": True,
            },
            transposed=False,
            d_ff_multiple=4,
            starts_with="end",
        ),
        Layout(
            model_type="bart",
            preset="bart_base",
            keys=_PAIRED,
            body=_bart,
            heads={"tokens": {"vocabulary/bias": "final_logits_bias"}, "label": _DENSE_LABEL, "span": _SPAN},
            classes={
                ("tokens",): Class("BartForConditionalGeneration", "model."),
                ("label",): Class("BartForSequenceClassification", "model.", {"classifier_dropout": 0.0}),
                ("span",): Class("BartForQuestionAnswering", "model."),
            },
            tied={"shared.weight": _COPIES},
            ignored=(r"(encoder|decoder)\.version",),
            zeros={"tokens": "final_logits_bias"},
            free=("output_head",),
            required={
                "normalize_before": False,
                "normalize_embedding": True,
                "add_final_layer_norm": False,
                "static_position_embeddings": False,
                "tie_word_embeddings": True,
            },
        ),
        Layout(
            model_type="marian",
            preset="transformer_base",
            keys=_PAIRED,
            body=_bart,
            heads={"tokens": {"vocabulary/bias": "final_logits_bias"}},
            classes={("tokens",): Class("MarianMTModel", "model.")},
            tied={"shared.weight": _COPIES},
            ignored=(r"(encoder|decoder)\.embed_positions\.weight",),  # the sinusoids
            zeros={"tokens": "final_logits_bias"},
            free=("output_head",),
            demanded=("activation_function", "scale_embedding"),
            required={
                "normalize_before": False,
                "normalize_embedding": False,
                "add_final_layer_norm": False,
                "static_position_embeddings": True,
                "share_encoder_decoder_embeddings": True,
                "tie_word_embeddings": True,
            },
        ),
        Layout(
            model_type="t5",
            preset="t5_base",
            keys={
                "vocab_size": ("vocab_size",),
                "d_model": ("d_model",),
                "d_ff": ("d_ff",),
                "num_heads": ("num_heads",),
                "head_dim": ("d_kv",),
                "num_layers": ("num_layers", "num_decoder_layers"),
                "max_length": ("n_positions",),
                "norm_epsilon": ("layer_norm_epsilon",),
                "relative_buckets": ("relative_attention_num_buckets",),
                "relative_max_distance": ("relative_attention_max_distance",),
                "dropout": ("dropout_rate",),
            },
            body=_t5,
            # Of T5ForTokenClassification there is nothing here: its tags are told from the encoder alone.
            heads={"tokens": {"vocabulary": "lm_head"}, "label": _DENSE_LABEL, "span": _SPAN},
            classes={
                ("tokens",): Class("T5ForConditionalGeneration"),
                ("label",): Class("T5ForSequenceClassification", "transformer.", {"classifier_dropout": 0.0}),
                ("span",): Class("T5ForQuestionAnswering"),
            },
            tied={"shared.weight": _COPIES},
            ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
            free=("activation", "gated", "tied_embeddings", "logit_scale"),
        ),
    )
}

"""config.json, read as a `TransformerConfig` and written from one."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxformer.checks import check_choice
from jaxformer.errors import UserError, suggest
from jaxformer.interop.layouts import Layout
from jaxformer.interop.tables import LAYOUTS
from jaxformer.models import PRESETS, TransformerConfig


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises UserError when it is missing, damaged or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; give a folder in Hugging Face format") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return content


def layout_of(theirs: Mapping[str, Any], where: Path) -> Layout:
    """Return the layout of a config's model type. Raises UserError for one that is not among ours."""
    model_type = theirs.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{where} names no model_type; there are {', '.join(LAYOUTS)}")
    if model_type not in LAYOUTS:
        hint = suggest(model_type, LAYOUTS)
        raise UserError(f"{where}: model type '{model_type}' cannot be imported{hint}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[model_type]


def read_config(
    layout: Layout, theirs: Mapping[str, Any], where: Path, *, untied: bool, biased: Collection[str]
) -> TransformerConfig:
    """Return the model that config.json describes.

    The weights say two things better than it does: whether there is an output matrix of its own (`untied`), and which
    of `layout.zeros` are not zero (`biased`). Raises UserError for a missing size, and for what no model here computes.
    """
    check_required(layout, layout.required, theirs, where)
    for key in layout.demanded:
        if key not in theirs:
            raise UserError(f"{where} has no {key}")
    fields = dict(PRESETS[layout.preset])
    for name, keys in layout.keys.items():
        found = {key: theirs[key] for key in keys if theirs.get(key) is not None}
        if len(set(map(str, found.values()))) > 1 and name != "dropout":
            words = ", ".join(f"{key} {value}" for key, value in found.items())
            raise UserError(f"{where}: {words}: stacks of unequal sizes are not supported")
        if found:
            fields[name] = _value(name, next(iter(found.values())), layout, where)
        elif name in ("vocab_size", "d_model", "num_heads", "num_layers"):
            raise UserError(f"{where} has no {keys[0]}")
    if layout.d_ff_multiple and theirs.get(*layout.keys.get("d_ff", ("",))) is None:
        fields["d_ff"] = layout.d_ff_multiple * fields["d_model"]
    if "head_dim" not in layout.keys:
        if fields["num_heads"] < 1 or fields["d_model"] % fields["num_heads"]:
            raise UserError(f"{where}: {fields['d_model']} dimensions cannot be shared by {fields['num_heads']} heads")
        fields["head_dim"] = fields["d_model"] // fields["num_heads"]
    if layout.model_type == "t5":
        fields |= _t5_fields(theirs, where, untied)
        fields |= dict.fromkeys(("attention_dropout", "hidden_dropout", "final_dropout"), fields["dropout"])
    if "tokens" in biased:
        fields["output_head"] = "biased"
    if "choices" in biased:
        fields["head_bias"] = True
    start = theirs.get("decoder_start_token_id")
    if start is not None and fields["family"] == "encoder_decoder":
        end = theirs.get("eos_token_id")
        if start == theirs.get("pad_token_id"):
            fields["decoder_start"] = "pad"
        elif start in (end if isinstance(end, list) else [end]):
            fields["decoder_start"] = "end"
        else:
            raise UserError(f"{where}: decoder_start_token_id {start} is neither padding nor end: not supported")
    try:
        return TransformerConfig(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_required(layout: Layout, required: Mapping[str, Any], theirs: Mapping[str, Any], where: Path) -> None:
    """Raise UserError for a key that says something that no model here computes."""
    for key, wanted in required.items():
        if theirs.get(key, wanted) not in (wanted, None):
            raise UserError(
                f"{where}: {key} = {theirs[key]!r} is not supported for {layout.model_type}, only {wanted!r}"
            )


def _value(name: str, value: Any, layout: Layout, where: Path) -> Any:
    """Return the value of our field `name`, checked for its type: config.json is another's file."""
    if name == "activation":
        check_choice(f"{where}: activation", str(value), layout.activations)
        return layout.activations[value]
    if name == "embedding_scale":
        return "sqrt_d_model" if value else "none"
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53
    whole = not isinstance(getattr(TransformerConfig, name, 0), float)
    if not number or (whole and value != int(value)):
        key = layout.keys[name][0]
        raise UserError(f"{where}: {key} = {value!r} is not a {'whole ' if whole else ''}number")
    return int(value) if whole else float(value)


def _t5_fields(theirs: Mapping[str, Any], where: Path, untied: bool) -> dict[str, Any]:
    gate, _, activation = str(theirs.get("feed_forward_proj") or "relu").rpartition("-")
    # This type's gated "gelu" is the tanh form.
    names = {**LAYOUTS["t5"].activations, **({"gelu": "gelu_tanh"} if gate else {})}
    if gate not in ("", "gated") or activation not in names:
        raise UserError(f"{where}: feed_forward_proj '{theirs['feed_forward_proj']}' is not supported")
    # v1.1 says so by a False here; transformers 5 writes True whatever it does, and the truth under another key.
    scales = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True)) is not False
    return {
        "activation": names[activation],
        "gated": bool(gate),
        "tied_embeddings": not untied,
        "logit_scale": "inverse_sqrt_d_model" if scales else "none",
    }


def find_layout(config: TransformerConfig, classes: tuple[str, ...]) -> Layout:
    """Return the layout of the one model type that computes what this model computes.

    Raises UserError, with the slots in which the nearest type differs, when there is none.
    """
    differing = {name: _differences(layout, config, classes) for name, layout in LAYOUTS.items()}
    candidates = [name for name, slots in differing.items() if "family" not in slots]
    nearest = min(candidates, key=lambda name: len(differing[name]) + (classes not in LAYOUTS[name].classes) / 2)
    if differing[nearest]:
        words = ", ".join(
            f"model.{name} is {getattr(config, name)!r}, not {value!r}" for name, value in differing[nearest].items()
        )
        raise UserError(f"no class of Hugging Face computes this model; the nearest is {nearest}, but {words}")
    if classes not in LAYOUTS[nearest].classes:
        raise UserError(f"Hugging Face's {nearest} has no class with {' and '.join(classes)}")
    return LAYOUTS[nearest]


def _differences(layout: Layout, config: TransformerConfig, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return {field: the value it would need} of what keeps a model from being of this type."""
    wanted = dict(layout.slots)
    if not {"next_sentence", "label", "choices"} & set(classes):  # nothing is pooled
        del wanted["pooler"], wanted["head_bias"]
    elif "choices" in classes and "choices" in layout.zeros:
        del wanted["head_bias"]
    if "tokens" in layout.zeros and config.output_head not in ("linear", "biased"):
        wanted["output_head"] = "linear"
    if layout.model_type == "t5":
        wanted["logit_scale"] = "inverse_sqrt_d_model" if config.tied_embeddings else "none"
    else:
        wanted["head_dim"] = config.d_model // config.num_heads
    if layout.model_type == "bert":
        wanted["token_types"] = max(1, config.token_types)
    if layout.d_ff_multiple and "d_ff" not in layout.keys:
        wanted["d_ff"] = layout.d_ff_multiple * config.d_model
    return {name: value for name, value in wanted.items() if getattr(config, name) != value}


def write_config(layout: Layout, config: TransformerConfig) -> dict[str, Any]:
    """Return what config.json says of the model's sizes and slots; ids and labels are the exporter's to add."""
    spelled: dict[str, str] = {}
    for theirs, ours in layout.activations.items():
        spelled.setdefault(ours, theirs)
    if config.gated:
        spelled = {"relu": "gated-relu", "silu": "gated-silu", "gelu_tanh": "gated-gelu"}
    if config.activation not in spelled:
        gated = "gated " * config.gated
        raise UserError(f"Hugging Face's {layout.model_type} has no {gated}activation '{config.activation}'")
    values: dict[str, Any] = {"model_type": layout.model_type}
    values |= {key: value for key, value in layout.required.items() if value is not False}
    for name, keys in layout.keys.items():
        value = getattr(config, name)
        if name == "activation":
            value = spelled[value]
        elif name == "embedding_scale":
            value = value == "sqrt_d_model"
        values |= dict.fromkeys(keys, value)
    if layout.model_type == "t5":
        scales = dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), config.tied_embeddings)
        values |= {"feed_forward_proj": spelled[config.activation]} | scales
    if config.family == "encoder_decoder":
        values["is_encoder_decoder"] = True
    return values

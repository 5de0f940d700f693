"""Make the files that the models are compared with: weights and outputs of the reference, at tiny sizes.

    python tests/make_reference.py tests/golden/reference

Needs torch and transformers. For each system a randomly initialised reference model writes its folder in Hugging Face
format, and `expected.npz`: a batch, logits, every layer's hidden state, the loss, the gradient of every parameter, and
the losses of ten AdamW steps.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

VOCAB, LAYERS, STEPS = 61, 3, 10
LEARNING_RATE, WEIGHT_DECAY, EPSILON = 1e-3, 0.1, 1e-6
# Three rows with padding behind them; odd lengths.
LENGTHS, SOURCE_LENGTHS = (11, 7, 4), (9, 5, 2)
WINDOW = 3

_PAIRED = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCAB, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": LAYERS, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 7, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip


def _marian() -> Any:
    # The decoder does not start from padding here: torch gives the row of nn.Embedding's padding no gradient.
    config = transformers.MarianConfig(
        **_PAIRED, max_position_embeddings=32, activation_function="relu", scale_embedding=True, pad_token_id=1,
        eos_token_id=0, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.MarianMTModel(config)


def _gpt() -> Any:
    config = {key: value for key, value in _GPT2.items() if "token_id" not in key}
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**config, n_positions=24, pad_token_id=0))


def _gpt2(**changes: Any) -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_GPT2 | {"n_positions": 24, "n_inner": 40} | changes))


def _banded() -> Any:
    """GPT-2 with the mask of every second layer cut to a band by hand."""
    model = _gpt2(n_positions=2048)

    def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        length = args[0].shape[1] if args else kwargs["hidden_states"].shape[1]
        places = torch.arange(length)
        far = places[:, None] - places[None, :] >= WINDOW
        mask = kwargs["attention_mask"].clone()
        mask[:, :, far] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    for block in model.transformer.h[1::2]:
        block.attn.register_forward_pre_hook(cut, with_kwargs=True)
    return model


def _bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForPreTraining(config)


def _distilbert() -> Any:
    config = transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=24, max_position_embeddings=24, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    return transformers.DistilBertForMaskedLM(config)


def _bart() -> Any:
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**_PAIRED, max_position_embeddings=24))


def _t5_1_1() -> Any:
    config = transformers.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = transformers.T5ForConditionalGeneration(config)
    # The class ties the softmax whatever the config says; a parameter of its own unties it.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, 16).normal_())
    return model


# Name -> (a fresh reference model, slots in which ours differs from what its config.json says).
SYSTEMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "transformer": (_marian, {}),
    "gpt": (_gpt, {}),
    "bert": (_bert, {}),
    "gpt2": (_gpt2, {}),
    "distilbert": (_distilbert, {}),
    "bart": (_bart, {}),
    "t5": (lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5)), {}),
    "t5_1_1": (_t5_1_1, {}),
    "gpt3": (lambda: _gpt2(n_positions=2048, n_inner=64), {}),
    "gpt3_banded": (_banded, {"attention_pattern": "dense_first", "attention_window": WINDOW}),
}


def write(name: str, folder: Path, seed: int = 0) -> None:
    """Write one system's folder."""
    torch.manual_seed(seed)
    build, slots = SYSTEMS[name]
    model = build().float().train()
    model.set_attn_implementation("eager")
    with torch.no_grad():  # so that no bias is 0, no scale 1, and every parameter matters
        for path, parameter in model.named_parameters():
            if "embed_positions" in path and name == "transformer":
                continue  # sinusoids
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if _is_scale(path) else 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tensors = {path: tensor for path, tensor in model.state_dict().items() if path not in _copies(model)}
    save_file({path: tensor.contiguous() for path, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "slots.json").write_text(json.dumps(slots) + "\n")

    batches = [batch(model.config, np.random.default_rng((seed, step))) for step in range(STEPS)]
    expected: dict[str, np.ndarray] = {}
    for step, arrays in enumerate(batches):
        expected |= {f"batch/{step}/{key}": array for key, array in arrays.items()}
    outputs = run(model, batches[0])
    outputs.loss.backward()
    expected["logits"] = _numpy(outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits)
    if "seq_relationship_logits" in outputs:
        expected["next_sentence"] = _numpy(outputs.seq_relationship_logits)
    paired = model.config.is_encoder_decoder
    hidden = {"decoder" if paired else "only": outputs.decoder_hidden_states if paired else outputs.hidden_states}
    if paired:
        hidden["encoder"] = outputs.encoder_hidden_states
    expected |= {f"hidden/{stack}": np.stack([_numpy(layer) for layer in layers]) for stack, layers in hidden.items()}
    expected |= {f"grad/{path}": _numpy(p.grad) for path, p in model.named_parameters() if p.grad is not None}

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=EPSILON)
    losses = []
    for arrays in batches:
        optimizer.zero_grad()
        loss = run(model, arrays).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    expected["losses"] = np.array(losses, np.float32)
    np.savez_compressed(folder / "expected.npz", **expected)


def _is_scale(path: str) -> bool:
    return path.endswith("weight") and any(word in path.lower() for word in ("norm", "ln_"))


def _copies(model: Any) -> set[str]:
    """Return the names that share another's memory, and buffers that are no parameters."""
    seen: dict[int, str] = {}
    copies = set()
    for path, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:
            copies.add(path)
        seen.setdefault(tensor.data_ptr(), path)
    return copies


def batch(config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a batch by our names (docs/batch.md), padding on the right."""

    def rows(lengths: tuple[int, ...], prefix: str = "") -> dict[str, np.ndarray]:
        size, count = max(lengths), len(lengths)
        real = np.arange(size)[None] < np.array(lengths)[:, None]
        return {
            f"{prefix}inputs": np.where(real, rng.integers(2, VOCAB, (count, size)), config.pad_token_id or 0),
            f"{prefix}segment_ids": real.astype(np.int32),
            f"{prefix}positions": np.where(real, np.arange(size), 0),
        }

    arrays = rows(LENGTHS)
    real = arrays["segment_ids"] > 0
    arrays["targets"] = rng.integers(2, VOCAB, real.shape)
    arrays["weights"] = real.astype(np.float32)
    if config.is_encoder_decoder:
        arrays |= rows(SOURCE_LENGTHS, "encoder_")
        arrays["inputs"][:, 0] = config.decoder_start_token_id
    elif config.model_type in ("bert", "distilbert"):
        places = np.array([np.sort(rng.permutation(length)[:3]) for length in LENGTHS])
        arrays["predict_positions"] = places
        arrays["targets"] = np.take_along_axis(arrays["targets"], places, axis=1)
        arrays["weights"] = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
        if config.model_type == "bert":
            arrays["token_types"] = np.where(real, np.arange(real.shape[1]) >= 3, 0)
            arrays["next_sentence_targets"] = rng.integers(0, 2, len(LENGTHS))
            arrays["next_sentence_weights"] = np.ones(len(LENGTHS), np.float32)
    else:
        arrays["weights"][:, -1] = 0  # the reference shifts by itself: the last place predicts nothing
        arrays["targets"][:, :-1] = arrays["inputs"][:, 1:]
        last = np.array(LENGTHS) - 1
        arrays["weights"][np.arange(len(LENGTHS)), last] = 0
    return {key: array.astype(np.float32 if key.endswith("weights") else np.int32) for key, array in arrays.items()}


def run(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the reference's outputs for a batch of ours."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    long = {key: tensor.long() for key, tensor in tensors.items()}
    ignored = torch.full_like(long["targets"], -100)
    labels = torch.where(tensors["weights"] > 0, long["targets"], ignored)
    common = {"output_hidden_states": True, "return_dict": True}
    if model.config.is_encoder_decoder:
        return model(
            input_ids=long["encoder_inputs"], attention_mask=long["encoder_segment_ids"],
            decoder_input_ids=long["inputs"], decoder_attention_mask=long["segment_ids"], labels=labels, **common,
        )  # fmt: skip
    inputs = {"input_ids": long["inputs"], "attention_mask": long["segment_ids"]}
    if "predict_positions" in long:
        everywhere = torch.full_like(long["inputs"], -100)
        everywhere.scatter_(1, long["predict_positions"], labels)
        if "token_types" in long:
            inputs |= {"token_type_ids": long["token_types"], "next_sentence_label": long["next_sentence_targets"]}
        return model(**inputs, labels=everywhere, **common)
    shifted = torch.full_like(long["inputs"], -100)
    shifted[:, 1:] = labels[:, :-1]
    return model(**inputs, labels=shifted, **common)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/reference")
    for system in SYSTEMS:
        write(system, root / system)
        print(root / system)

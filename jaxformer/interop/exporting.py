"""A run becomes a folder in Hugging Face format: config.json, safetensors, tokenizer files, a model card."""

import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.checkpoint import NEWEST, Source, Which, named, read_params_in_groups, source_of
from jaxformer.interop.card import model_card
from jaxformer.interop.configs import find_layout, write_config
from jaxformer.interop.folders import check_new, whole_or_not_at_all
from jaxformer.interop.layouts import Layout, Piece, pieces, standing
from jaxformer.interop.told import write_task
from jaxformer.interop.weights import SHARD_BYTES, Shape, TensorWriter
from jaxformer.models import Model
from jaxformer.runs import StoredRun, stored_run
from jaxformer.storage import store_errors
from jaxformer.tokenizers import Tokenizer
from jaxformer.trees import flatten

# What their tokenizer files call the roles of our special tokens.
_SPECIAL = {
    "pad_token": "pad", "unk_token": "unknown", "cls_token": "classify", "sep_token": "separator", "mask_token": "mask",
    "eos_token": "end", "bos_token": "start",
}  # fmt: skip


@store_errors()
def export_run(
    workdir: Path, out: Path, *, which: Which = NEWEST, allow_change: bool = False, shard_bytes: int = SHARD_BYTES
) -> str:
    """Write a run's newest checkpoint, or the parameters that are meant (see `jaxformer.load`), as a Hugging Face
    folder and return the name of the class that loads it.

    Rows beyond `vocab_size` are left out. Arrays are read one stack at a time, and together only where they share a
    tensor there. Raises UserError for a model that no class there computes, and, unless `allow_change`, for a tokenizer
    that is not the one that the run was trained with; leaves nothing behind then.
    """
    check_new(out, "OUT")
    run = stored_run(workdir, allow_change)  # first: it says what the folder is, where it is no run
    source = source_of(workdir, which._replace(parameters=which.parameters or run.config.evaluation.parameters))
    model = run.model
    classes = standing(model)
    layout = find_layout(model.config, classes)
    loader = layout.classes[classes]
    said = write_task(run, layout, classes)
    with whole_or_not_at_all(out) as temporary:
        write_tensors(layout, model, classes, source, temporary, shard_bytes)
        theirs = {"architectures": [loader.name]} | write_config(layout, model.config) | _ids(run, layout)
        theirs |= {"dtype": "float32", **loader.required, **said}
        _write_json(temporary / "config.json", theirs)
        run.tokenizer.save(temporary / "tokenizer.json")
        _write_json(temporary / "tokenizer_config.json", _tokenizer_config(run.tokenizer, model))
        (temporary / "README.md").write_text(model_card(named(workdir)[0], run, loader.name, source), encoding="utf-8")
    return loader.name


def write_tensors(
    layout: Layout, model: Model, classes: tuple[str, ...], source: Source, folder: Path, shard_bytes: int
) -> None:
    """Write all arrays of a model, those that share one of their tensors together. `classes` stand on the body."""
    config = model.config
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(model.shapes).items()}
    groups: dict[str, list[Piece]] = {}
    theirs: dict[str, Shape] = {}
    for piece in pieces(layout, config, shapes, classes, layout.classes[classes].prefix):
        theirs[piece.name] = piece.whole(
            _cut(piece.path, shapes[piece.path], config.vocab_size)[piece.layer is not None :]
        )
        groups.setdefault(piece.name, []).append(piece)
    buffers: dict[str, Shape] = {
        name: (1, config.vocab_size) if what == "tokens" else (1,)
        for what, name in layout.zeros.items()
        if what in classes
    }
    writer = TensorWriter(folder, theirs | buffers, shard_bytes)
    writer.write((name, np.zeros(shape, np.float32)) for name, shape in buffers.items() if name not in theirs)
    together: dict[tuple[str, ...], list[str]] = {}
    for name, parts in groups.items():
        together.setdefault(tuple(sorted({piece.path for piece in parts})), []).append(name)

    def tensors(names: list[str], arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        for name in names:
            ours = sorted(groups[name], key=operator.attrgetter("part"))
            parts = [_take(arrays[piece.path], piece, config.vocab_size) for piece in ours]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=ours[0].axis)
            yield name, array.reshape((theirs | buffers)[name])

    for paths, arrays in read_params_in_groups(source, list(together)):
        writer.write(tensors(together[paths], arrays))
        arrays.clear()  # before the next ones are read


def _take(array: np.ndarray, piece: Piece, vocab_size: int) -> np.ndarray:
    if piece.layer is not None:
        return array[piece.layer].T if piece.transposed else array[piece.layer]
    cut = array[tuple(slice(n) for n in _cut(piece.path, array.shape, vocab_size))]
    return cut.T if piece.transposed else cut


def _cut(path: str, shape: Shape, vocab_size: int) -> Shape:
    """Return the shape without the rows beyond the vocabulary."""
    if path in ("embedding/tokens", "vocabulary/bias"):
        return (vocab_size, *shape[1:])
    return (shape[0], vocab_size) if path == "vocabulary/kernel" else shape


def _ids(run: StoredRun, layout: Layout) -> dict[str, Any]:
    special = run.tokenizer.vocabulary.special
    names = {"pad_token_id": "pad", "eos_token_id": "end", "bos_token_id": layout.starts_with}
    ids = {name: special.get(role) for name, role in names.items()}
    if run.model.config.family == "encoder_decoder":
        ids["decoder_start_token_id"] = special[run.model.config.decoder_start]
    return ids


def _tokenizer_config(tokenizer: Tokenizer, model: Model) -> dict[str, Any]:
    special = tokenizer.vocabulary.special
    names = {
        key: tokenizer.tokens([special[role]])[0]
        for key, role in _SPECIAL.items()
        if role in special and tokenizer.vocabulary.is_special[special[role]]
    }
    return names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if model.config.token_types else []), "attention_mask"],
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

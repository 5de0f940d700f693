"""A Hugging Face folder, or a model of its hub, becomes a run directory: config.json, tokenizer.json, a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import config as configs
from jaxformer.checkpoint import save_params
from jaxformer.devices import prepare_process
from jaxformer.errors import UserError
from jaxformer.interop.configs import layout_of, read_config, read_json
from jaxformer.interop.folders import check_new, source_folder, whole_or_not_at_all
from jaxformer.interop.layouts import Layout, Piece, pieces
from jaxformer.interop.weights import Shape, StoredTensor, as_float32, check_dtype, listed, stored_tensors
from jaxformer.models import Model, Params, TransformerConfig, count_parameters
from jaxformer.runs import IMPORT, bind, build_model, write_record
from jaxformer.storage import store_errors
from jaxformer.tokenizers import Tokenizer, load_tokenizer
from jaxformer.trees import flatten, unflatten


@store_errors()
def import_run(source: str, workdir: Path, tokenizer: Path | None = None, *, revision: str | None = None) -> int:
    """Write a run directory from a Hugging Face folder, or a hub name, and return the number of parameters.

    `tokenizer`: a tokenizer file or folder, where the source has none. Raises UserError, and leaves nothing behind, for
    whatever the folder lacks or holds too much of.
    """
    check_new(workdir, "--workdir")
    folder = source_folder(source, revision)
    prepare_process()
    where = folder / "config.json"
    theirs = read_json(where)
    layout = layout_of(theirs, where)
    tensors = named(layout, stored_tensors(folder))
    config, heads = describe(layout, theirs, where, tensors)
    labels = _labels(layout, theirs, where, tensors) if "label" in heads else ()
    words = usable(load_tokenizer(tokenizer or folder), config.vocab_size)
    if config.family == "encoder_decoder":  # whose ids stand in the rows that it reads
        _check_ids(theirs, words)
    experiment = _experiment(config, layout.preset, heads, words, workdir)
    resolved = configs.resolve(experiment, name=IMPORT + source)
    model = build_model(resolved, bind(resolved, words, labels))
    params = read_params(layout, model, tensors, folder)
    count = count_parameters(model)
    with whole_or_not_at_all(workdir) as temporary:
        words.save(temporary / "tokenizer.json")
        save_params(temporary / "checkpoints", params)
        kept = {"data": {}, "tokenizer": words.fingerprint}  # which data they learnt from nobody says
        write_record(temporary, resolved, labels, count, read={"fingerprints": kept})
    return count


def named(layout: Layout, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors by their names in a bare body: classes with a head put a prefix before them."""
    prefixes = {prefix for _, prefix in layout.classes.values()}
    named: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        prefix = next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), "")
        plain = name.removeprefix(prefix)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # as TensorFlow named them
            plain = plain.removesuffix(old) + new if plain.endswith(old) else plain
        if plain in named:
            raise UserError(f"{tensor.file} holds {plain} twice, with and without a prefix")
        named[plain] = tensor
    for original, copies in layout.tied.items():
        found = [copy for copy in copies if copy in named]
        if original not in named and found:
            named[original] = named[found[0]]
    return named


def describe(
    layout: Layout, theirs: Mapping[str, Any], where: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[TransformerConfig, tuple[str, ...]]:
    """Return the model, and what stands on its body, by the tensors that are there.

    Raises UserError when config.json names a class that is none of the layout's, whatever the tensors look like.
    """
    known = [name for name, _ in layout.classes.values()]
    architecture = next(iter(theirs.get("architectures") or ()), "")
    # A bare body, as BertModel, has the class's parameters where all that it lacks are copies of others.
    if architecture and architecture not in known and not str(architecture).endswith("Model"):
        raise UserError(f"{where}: {architecture} cannot be imported; supported are {', '.join(dict.fromkeys(known))}")
    untied = "tied_embeddings" in layout.free and _untied(theirs, tensors)
    biased = any(name in tensors and np.any(as_float32(name, tensors[name])) for name in layout.zeros)
    config = read_config(layout, theirs, where, untied=untied, biased=biased)
    if config.num_layers > len(tensors):
        raise UserError(f"{where}: {config.num_layers} layers, but the weights are {len(tensors)} tensors")
    heads = [head for head in ("next_sentence", "label") if _has(layout, f"row_heads/{head}", tensors)]
    predicts = config.family != "encoder_only" or _has(layout, "vocabulary/transform", tensors)
    classes = (*(("tokens",) if predicts and "label" not in heads else ()), *heads)
    if classes not in layout.classes:
        raise UserError(
            f"{where.parent}: the weights of {architecture or 'this model'} have no head that can be imported; "
            f"supported are {', '.join(dict.fromkeys(known))}"
        )
    return config, classes


def _untied(theirs: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the softmax has a matrix of its own. Where none is stored (classifiers), config.json says so."""
    if "lm_head.weight" in tensors:
        return not _is_copy(tensors, "lm_head.weight", "shared.weight")
    return "classification_head.out_proj.weight" in tensors and theirs.get("tie_word_embeddings") is False


def _check_ids(theirs: Mapping[str, Any], words: Tokenizer) -> None:
    """Raise UserError when padding or end have other ids than config.json says."""
    for key, role in (("pad_token_id", "pad"), ("eos_token_id", "end")):
        wanted, found = theirs.get(key), words.vocabulary.id(role)
        if isinstance(wanted, int) and wanted != found:
            raise UserError(
                f"config.json says {key} {wanted}, but the tokenizer's {words.tokens([found])[0]} is {found}; "
                "use the tokenizer that belongs to the model"
            )


def usable(words: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a tokenizer without the special tokens for which the model has no row (bart-large-cnn's <mask>).

    Raises UserError when it cannot encode at all.
    """
    words = words.without_special_from(vocab_size)
    try:
        words.encode("a", special=True)
    except Exception as error:  # a template that names tokens which are not there
        raise UserError(f"the tokenizer cannot encode: {error}; give another with --tokenizer") from error
    return words


def _experiment(
    config: TransformerConfig, preset: str, heads: tuple[str, ...], words: Tokenizer, workdir: Path
) -> dict[str, Any]:
    """Return the sections of a config that fits the model; its data is the built-in corpus until another is named."""
    length = min(config.max_length, 512)
    sections: dict[str, Any] = {
        "seed": 0,
        "init_from": "",
        "model": {"preset": preset} | vars(config),
        "tokenizer": {"name": "file", "path": str(workdir / "tokenizer.json")},
        "data": {"name": "stdlib_docs"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "training": {"num_steps": 1, "batch_size": 16},
        **{name: {} for name in ("sharding", "checkpoint", "evaluation", "generation", "footprint")},
    }
    vocabulary = words.vocabulary
    if "label" in heads:
        names = {"encoder_only": "pooled", "decoder_only": "extract", "encoder_decoder": "decoder"}
        task: dict[str, Any] = {"name": f"{names[config.family]}_classification", "sequence_length": min(length, 128)}
        if config.family == "decoder_only":
            task |= {"language_model_weight": 0.0, "special_tokens": "extract" in vocabulary.special}
        return sections | {"task": task}
    if config.family == "decoder_only":
        return sections | {"objective": {"name": "causal_lm", "sequence_length": length}}
    if config.family == "encoder_only":
        objective = {"name": "masked_lm", "sequence_length": length, "max_predictions": max(1, round(0.15 * length))}
        return sections | {"objective": objective | {"next_sentence": "next_sentence" in heads}}
    if "mask" in vocabulary.special:
        return sections | {"objective": {"name": "denoising", "sequence_length": length}}
    if len(vocabulary.sentinels):
        # A sentinel for each span: one in about twenty tokens at the usual rate and length.
        length = min(length, 18 * len(vocabulary.sentinels))
        return sections | {"objective": {"name": "span_corruption", "sequence_length": max(length, 8)}}
    # A translator: judged on --config.data of parallel text.
    half = min(length, 256)
    return sections | {"objective": {"name": "parallel_text", "source_length": half, "target_length": half} | STDLIB}


# The built-in corpus's pair of texts: a docstring's body and its first line.
STDLIB = {"source_field": "body", "target_field": "summary"}


def _has(layout: Layout, head: str, tensors: Mapping[str, StoredTensor]) -> bool:
    return head in layout.heads and f"{layout.heads[head]}.weight" in tensors


def _is_copy(tensors: Mapping[str, StoredTensor], name: str, original: str) -> bool:
    """Whether two tensors are equal, or the original is not there to compare with."""
    if original not in tensors or tensors[name] is tensors[original]:
        return True
    one, other = tensors[name], tensors[original]
    return one.shape == other.shape and bool(np.array_equal(one.read(), other.read()))


def _labels(
    layout: Layout, theirs: Mapping[str, Any], where: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[str, ...]:
    """Return the names of a classifier's labels, in its order. Raises UserError for what is no choice among labels."""
    count = tensors[f"{layout.heads['row_heads/label']}.weight"].shape[0]
    kind = theirs.get("problem_type")
    if kind not in (None, "single_label_classification") or count < 2:
        what = kind or "regression (one output)"
        raise UserError(f"{where}: {what} cannot be imported; only one label out of several can be told")
    names = theirs.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise UserError(f"{where}: id2label is no table of labels")
    named = [str(names.get(str(number), f"LABEL_{number}")) for number in range(count)]
    return tuple(named if len(set(named)) == count else [f"LABEL_{number}" for number in range(count)])


def read_params(layout: Layout, model: Model, tensors: Mapping[str, StoredTensor], folder: Path) -> Params:
    """Return the model's parameters as numpy arrays, stacked. `tensors`: by their names in a bare body.

    Raises UserError, before any of them is filled, when a tensor is missing, left over, of another shape or of another
    kind of numbers.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(model.shapes).items()}
    places = list(pieces(layout, model.config, shapes))
    wanted: dict[str, Shape] = {}
    for piece in places:
        shape = shapes[piece.path][piece.layer is not None :]
        shape = shape if piece.third is None else (*shape[:-1], 3 * shape[-1])
        wanted[piece.name] = shape[::-1] if piece.transposed else shape
    _compare(layout, wanted, tensors, folder)
    params = {path: _aligned(shape) for path, shape in shapes.items()}
    by_name: dict[str, list[Piece]] = {}
    for piece in places:
        by_name.setdefault(piece.name, []).append(piece)
    for name, parts in by_name.items():
        array = as_float32(name, tensors[name]).reshape(wanted[name])
        for piece in parts:
            values = array.T if piece.transposed else array
            if piece.third is not None:
                width = values.shape[-1] // 3
                values = values[..., piece.third * width : (piece.third + 1) * width]
            params[piece.path][... if piece.layer is None else piece.layer] = values
    return unflatten(params)


def _compare(layout: Layout, wanted: Mapping[str, Shape], tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{folder}: the weights lack {listed(missing)}")
    copies = {copy: original for original, found in layout.tied.items() for copy in found if original in wanted}
    allowed = (*wanted, *copies, *layout.zeros)
    patterns = re.compile("|".join(layout.ignored) or "(?!)")
    extra = [name for name in tensors if name not in allowed and not patterns.fullmatch(name)]
    if extra:
        raise UserError(f"{folder}: the weights hold more than the model of config.json: {listed(extra)}")
    for name, shape in wanted.items():
        found = tensors[name].shape
        if tuple(n for n in found if n != 1) != tuple(n for n in shape if n != 1):
            raise UserError(f"{tensors[name].file}: {name} has shape {list(found)}, the model's is {list(shape)}")
        check_dtype(name, tensors[name])
    for copy, original in copies.items():
        if copy in tensors and copy not in wanted and not _is_copy(tensors, copy, original):
            raise UserError(f"{folder}: {copy} differs from {original}, which {layout.model_type} shares with it")


def _aligned(shape: Shape) -> np.ndarray:
    """Return an empty float32 array that JAX takes over without a copy: it starts at a multiple of 64 bytes."""
    count = int(np.prod(shape))
    raw = np.empty(4 * count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 4 * count].view(np.float32).reshape(shape)

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
from jaxformer.interop.configs import check_required, layout_of, read_config, read_json
from jaxformer.interop.folders import check_new, source_folder, whole_or_not_at_all
from jaxformer.interop.layouts import STANDING, Layout, Piece, pieces
from jaxformer.interop.told import CLASSIFYING, TOLD, read_task
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
    config, classes = describe(layout, theirs, where, tensors)
    task, labels = read_task(layout, classes, theirs, where, tensors)
    words = usable(load_tokenizer(tokenizer or folder), config.vocab_size)
    if config.family == "encoder_decoder":  # whose ids stand in the rows that it reads
        _check_ids(theirs, words)
    experiment = _experiment(config, layout.preset, classes, task, words, workdir)
    try:
        resolved = configs.resolve(experiment, name=IMPORT + source)
    except UserError as error:  # a setting of the task
        raise UserError(f"{where}: {error}") from error
    model = build_model(resolved, bind(resolved, words, labels))
    params = read_params(layout, model, classes, tensors, folder)
    count = count_parameters(model)
    with whole_or_not_at_all(workdir) as temporary:
        words.save(temporary / "tokenizer.json")
        save_params(temporary / "checkpoints", params)
        kept = {"data": {}, "tokenizer": words.fingerprint}  # which data they learnt from nobody says
        write_record(temporary, resolved, labels, count, read={"fingerprints": kept})
    return count


def named(layout: Layout, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors by their names in a bare body: classes with a head put a prefix before them."""
    prefixes = {one.prefix for one in layout.classes.values()}
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
    names = [one.name for one in layout.classes.values()]
    known = ", ".join(dict.fromkeys(names))
    architecture = str(next(iter(theirs.get("architectures") or ()), ""))
    # A bare body, as BertModel, has the class's parameters where all that it lacks are copies of others.
    if architecture and architecture not in names and not architecture.endswith("Model"):
        raise UserError(f"{where}: {architecture} cannot be imported; supported are {known}")
    untied = "tied_embeddings" in layout.free and _untied(theirs, tensors)
    zeros = {what: name for what, name in layout.zeros.items() if name in tensors}
    biased = [what for what, name in zeros.items() if np.any(as_float32(name, tensors[name]))]
    config = read_config(layout, theirs, where, untied=untied, biased=biased)
    if config.num_layers > len(tensors):
        raise UserError(f"{where}: {config.num_layers} layers, but the weights are {len(tensors)} tensors")
    meant = next((classes for classes, one in layout.classes.items() if one.name == architecture), ())
    classes = _standing(layout, config, meant, tensors)
    absent = [what for what in meant if what in TOLD and what not in classes]
    if absent:
        lacking = [name for name in _arrays(layout, absent[0]) if f"{name}.weight" not in tensors]
        raise UserError(f"{where.parent}: the weights lack {listed(lacking)}, the head of {architecture}")
    if classes not in layout.classes:
        raise UserError(
            f"{where.parent}: the weights of {architecture or 'this model'} have no head that can be imported; "
            f"supported are {known}"
        )
    check_required(layout, layout.classes[classes].required, theirs, where)
    return config, classes


def _standing(
    layout: Layout, config: TransformerConfig, meant: tuple[str, ...], tensors: Mapping[str, StoredTensor]
) -> tuple[str, ...]:
    """Return what stands on the body by the tensors that are there; `meant` is what config.json's class has."""
    held = [what for what in STANDING if _has(layout, what, tensors)]
    alike = [what for what in ("label", "choices", "tags") if what in held]
    if len(alike) > 1:  # one array serves several classes: theirs says which it is, or else what it stands on
        pooled = layout.heads["label"].get("row_heads/pooler") or layout.body(config).get("row_heads/pooler")
        told = "label" if f"{pooled}.weight" in tensors else "tags"
        told = next((what for what in meant if what in alike), told)
        held = [what for what in held if what not in alike or what == told]
    if set(TOLD) & set(held):
        return tuple(what for what in held if what != "tokens")
    return tuple(what for what in STANDING if what in held or (what == "tokens" and config.family != "encoder_only"))


def _untied(theirs: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the softmax has a matrix of its own. Where none is stored (classifiers), config.json says so."""
    if "lm_head.weight" in tensors:
        return not _is_copy(tensors, "lm_head.weight", "shared.weight")
    told = ("classification_head.out_proj.weight", "qa_outputs.weight")
    return any(name in tensors for name in told) and theirs.get("tie_word_embeddings") is False


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
    config: TransformerConfig, preset: str, classes: tuple[str, ...], task: dict[str, Any], words: Tokenizer,
    workdir: Path,
) -> dict[str, Any]:  # fmt: skip
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
    if task:
        return sections | {"task": _fitted(task, config, words)}
    if config.family == "decoder_only":
        return sections | {"objective": {"name": "causal_lm", "sequence_length": length}}
    if config.family == "encoder_only":
        objective = {"name": "masked_lm", "sequence_length": length, "max_predictions": max(1, round(0.15 * length))}
        return sections | {"objective": objective | {"next_sentence": "next_sentence" in classes}}
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


def _fitted(task: dict[str, Any], config: TransformerConfig, words: Tokenizer) -> dict[str, Any]:
    """Return the section of a task with what config.json does not say and the model and its tokenizer do."""
    asks = task["name"] == TOLD["span"]
    length = min(config.max_length, 384 if asks else 128)
    fitted = {"sequence_length": length} | ({"max_query_length": min(64, length // 3)} if asks else {})
    if config.family == "decoder_only" and task["name"] in CLASSIFYING and "extract" not in words.vocabulary.special:
        fitted |= {"special_tokens": False}
    return fitted | task


def _has(layout: Layout, what: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the arrays that are a head's own are there."""
    names = _arrays(layout, what)
    return bool(names) and all(f"{name}.weight" in tensors or name in tensors for name in names)


def _arrays(layout: Layout, what: str) -> list[str]:
    """Return the names of their modules, or arrays, that are a head's own."""
    theirs = layout.heads.get(what, {}).values()
    return list(dict.fromkeys(name if isinstance(name, str) else name[0] for name in theirs))


def _is_copy(tensors: Mapping[str, StoredTensor], name: str, original: str) -> bool:
    """Whether two tensors are equal, or the original is not there to compare with."""
    if original not in tensors or tensors[name] is tensors[original]:
        return True
    one, other = tensors[name], tensors[original]
    return one.shape == other.shape and bool(np.array_equal(one.read(), other.read()))


def read_params(
    layout: Layout, model: Model, classes: tuple[str, ...], tensors: Mapping[str, StoredTensor], folder: Path
) -> Params:
    """Return the model's parameters as numpy arrays, stacked; `classes` stand on its body. `tensors`: by their names in
    a bare body.

    Raises UserError, before any of them is filled, when a tensor is missing, left over, of another shape or of another
    kind of numbers.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(model.shapes).items()}
    places = list(pieces(layout, model.config, shapes, classes))
    wanted = {piece.name: piece.whole(shapes[piece.path][piece.layer is not None :]) for piece in places}
    _compare(layout, wanted, tensors, folder)
    params = {path: _aligned(shape) for path, shape in shapes.items()}
    by_name: dict[str, list[Piece]] = {}
    for piece in places:
        by_name.setdefault(piece.name, []).append(piece)
    for name, parts in by_name.items():
        array = as_float32(name, tensors[name]).reshape(wanted[name])
        for piece in parts:
            values = np.split(array, piece.parts, axis=piece.axis)[piece.part] if piece.parts > 1 else array
            params[piece.path][... if piece.layer is None else piece.layer] = values.T if piece.transposed else values
    return unflatten(params)


def _compare(layout: Layout, wanted: Mapping[str, Shape], tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{folder}: the weights lack {listed(missing)}")
    copies = {copy: original for original, found in layout.tied.items() for copy in found if original in wanted}
    allowed = (*wanted, *copies, *layout.zeros.values())
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

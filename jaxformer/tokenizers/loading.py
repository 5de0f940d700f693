"""Which tokenizer a path means: a `tokenizer.json`, a released file, or a folder that holds one of them."""

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers as hf

from jaxformer.errors import UserError
from jaxformer.storage import location
from jaxformer.tokenizers import released
from jaxformer.tokenizers.files import Companions, companions, read_text
from jaxformer.tokenizers.sentencepieces import t5
from jaxformer.tokenizers.tokenizer import Tokenizer

# Files that only say something together, and what reads them. An earlier line wins where files are shared.
_TOGETHER: dict[tuple[str, ...], Callable[..., hf.Tokenizer]] = {
    ("dict.txt", "encoder.json", "vocab.bpe"): released.fairseq_bart,
    ("encoder.json", "vocab.bpe"): released.gpt2,
    ("encoder_bpe_40000.json", "vocab_40000.bpe"): released.gpt,
    ("vocab.json", "merges.txt"): released.by_content,
}
# Files that say everything, by the ends of their names.
_ALONE: dict[str, Callable[[Path], hf.Tokenizer]] = {"vocab.txt": released.bert, ".model": t5}
# What tokenizer_config.json may set anew in a tokenizer.json: its part, the kind of step, {there: here}.
_SETTINGS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("pre_tokenizer", "ByteLevel", {"add_prefix_space": "add_prefix_space"}),
    (
        "normalizer", "BertNormalizer",
        {"lowercase": "do_lower_case", "strip_accents": "strip_accents",
         "handle_chinese_chars": "tokenize_chinese_chars"},
    ),
)  # fmt: skip
KNOWN = (
    "tokenizer.json, vocab.txt (BERT), spiece.model (T5), vocab.json with merges.txt (GPT, GPT-2, BART), "
    "encoder_bpe_40000.json with vocab_40000.bpe (GPT), encoder.json with vocab.bpe (GPT-2) and dict.txt (BART)"
)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`, a released vocabulary with the files that belong to it, or a folder with either.

    A folder's `tokenizer.json` comes first. Files beside a vocabulary count where they are named as Hugging Face names
    them: tokenizer_config.json, added_tokens.json, special_tokens_map.json. Raises UserError when files are missing,
    damaged or do not fit each other, or a folder holds several tokenizers.
    """
    path = location(path)
    if path.is_dir():
        path = path / "tokenizer.json" if (path / "tokenizer.json").exists() else _released_in(path)
    for ending, read in _ALONE.items():
        if path.name.endswith(ending):
            return _as_saved(read(path))
    for names, together in _TOGETHER.items():
        if path.name in (names if names[0] != "dict.txt" else names[:1]) and path.exists():
            return _as_saved(together(*_all_of(path, names)))
    text = read_text(path)
    try:
        backend = hf.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # for what it cannot parse the library raises a bare Exception, or panics
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged or no tokenizer.json: {first}") from error
    if path.name == "tokenizer.json":
        backend = _as_set(backend, companions(path.parent))
    return Tokenizer(backend)


def _as_set(backend: hf.Tokenizer, beside: Companions) -> hf.Tokenizer:
    """Return the backend of a tokenizer.json with what tokenizer_config.json beside it says otherwise, as the reference
    reads it."""
    state = json.loads(backend.to_str())
    changed = False
    for part, kind, names in _SETTINGS:
        section = state[part] or {}
        for step in [section, *section.get("normalizers", []), *section.get("pretokenizers", [])]:
            for name, setting in names.items() if step.get("type") == kind else ():
                value = beside.setting(setting, bool, None)
                if value is not None and value != step[name]:
                    step[name], changed = value, True
    return hf.Tokenizer.from_str(json.dumps(state)) if changed else backend


def _released_in(folder: Path) -> Path:
    """Return a file of the one released tokenizer in a folder."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    if {"source.spm", "target.spm"} <= names:
        raise UserError(
            f"{folder} has a tokenizer for each of its languages (source.spm, target.spm); they cannot be read as one, "
            "give a tokenizer.json"
        )
    found = sorted(name for name in names if name.endswith(tuple(_ALONE)))
    for group in _TOGETHER:
        first = next((name for name in group if name in names), None)
        if first is not None and (group[0] != "dict.txt" or first == "dict.txt"):
            found.append(first)
            names -= set(group)
    if not found:
        raise UserError(f"no tokenizer files in {folder}; known are {KNOWN}")
    if len(found) > 1:
        raise UserError(f"{folder} holds several tokenizers: {', '.join(found)}; give the path of one of these files")
    return folder / found[0]


def _all_of(path: Path, names: tuple[str, ...]) -> list[Path]:
    files = [path.with_name(name) for name in names]
    if missing := [file.name for file in files if not file.exists()]:
        raise UserError(f"{path} needs {' and '.join(missing)} beside it; add what is missing from the same release")
    return files


def _as_saved(backend: hf.Tokenizer) -> Tokenizer:
    # As it will be read back: what a tokenizer.json says counts, so that the fingerprint stays.
    return Tokenizer(hf.Tokenizer.from_str(backend.to_str()))

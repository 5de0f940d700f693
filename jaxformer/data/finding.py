"""Which files are data: a file that is named, those of a folder, or those that match a pattern.

A file that is named is read, whatever it is called. Of a folder, or of a pattern's matches, these are no data: names
that begin with a dot, `NAME~` and `#NAME#`, and what lies in folders of such names. Of several kinds of file one is
read, by their suffixes, and the others are counted.
"""

import collections
import fnmatch
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.data.left_out import LeftOut, count
from jaxformer.errors import UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What a suffix says of a file's format. Files of other suffixes, or of none, may be anything, plain text too.
PLAIN = (".txt", ".text", ".md", ".markdown", ".rst")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".tab")
CONLL = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes")
_OTHERS = """
    .json .csv .tsv .arrow .feather .avro .orc .array_record .tfrecord .lock .db .sqlite .sqlite3 .xls .xlsx .ods
    .pdf .doc .docx .odt .rtf .epub .mobi .ppt .pptx .ps .eps .djvu .ipynb
    .zip .tar .tgz .tbz2 .txz .7z .rar .lz4 .lz .lzma .z .br .jar .whl .deb .rpm .iso .dmg
    .png .jpg .jpeg .gif .bmp .tif .tiff .webp .ico .svg .heic .mp3 .wav .flac .ogg .m4a .mp4 .mkv .avi .mov .webm
    .npy .npz .h5 .hdf5 .pt .pth .ckpt .safetensors .onnx .gguf .bin .pkl .pickle .mat .rds .rdata
    .pyc .pyo .so .o .a .dll .exe .dylib .class .wasm .woff .woff2 .ttf .otf .swp .bak .orig .tmp .part
"""
OTHERS = (*JSON_LINES, *PARQUET, *_OTHERS.split())


class Kind(NamedTuple):
    """Which files of a folder a source reads: those with the first of the sets of suffixes that is there at all."""

    wanted: str  # as people say it
    suffixes: tuple[Callable[[str], bool], ...]


KINDS = {
    "text": Kind("of plain text", (lambda suffix: suffix in PLAIN, lambda suffix: suffix not in OTHERS)),
    "json_lines": Kind("*.jsonl", (lambda suffix: suffix in JSON_LINES, lambda suffix: suffix == ".json")),
    "parquet": Kind("*.parquet", (lambda suffix: suffix in PARQUET,)),
    "csv": Kind("*.csv or *.tsv", (lambda suffix: suffix in CSV,)),
    "squad": Kind("*.json", (lambda suffix: suffix == ".json",)),
    "conll": Kind("*.conll", (lambda suffix: suffix in CONLL, lambda suffix: suffix in ("", ".txt"))),
}


class Found(NamedTuple):
    """The files that a path gives, sorted, and how many others were left out."""

    files: list[Path]
    left_out: LeftOut


def find_files(path: str, kind: Kind, key: str = "data.path") -> Found:
    """Return the file at `path`, or those of a folder, or of a pattern's matches, that are of a kind; each once,
    whatever links lead to it. `key` of the config gave the path. Raises UserError where there are none."""
    named = Path(path).expanduser()
    is_folder = named.is_dir()
    if named.is_file():  # also where its name holds * or [
        return Found([named], {})
    every = _distinct(_in_folder(named) if is_folder else _matches(str(named)))
    advice = "give a file, a folder or a pattern such as 'texts/*.txt'"
    if not every and not is_folder:
        raise UserError(f"{key}: no file {path}; {advice}")
    present = {suffix_of(file) for file in every}
    chosen = set() if is_folder else present & {suffix_of(named)} - {""}  # a pattern may name the suffix
    for is_kind in kind.suffixes:
        chosen = chosen or set(filter(is_kind, present))
    files, others = [], collections.Counter[str]()
    for file in every:
        if reason := _reason(file, chosen, every):
            others[reason] += 1
        else:
            files.append(file)
    if not files:
        held = ", ".join(f"{number} {reason}" for reason, number in sorted(others.items()))
        raise UserError(f"{key}: no file {kind.wanted} in {path}{f' ({held})' if held else ''}; {advice}")
    left_out: LeftOut = {}
    for reason, number in sorted(others.items()):
        count(left_out, f"files left out: {reason}", number, len(every))
    return Found(files, left_out)


def suffix_of(file: Path) -> str:
    """Return the suffix that tells a file's format, without that of its compression: .txt of A.TXT.gz."""
    name = file.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _reason(file: Path, chosen: Collection[str], every: Collection[Path]) -> str:
    """Return why a file is left out, "" for one that is read."""
    if not file.is_file():
        return "broken link"
    if suffix_of(file) not in chosen:
        return suffix_of(file) or "no suffix"
    if file.suffix.lower() in COMPRESSED and file.with_suffix("") in every:
        return f"{file.suffix} beside the same file"
    return "empty" if file.stat().st_size == 0 else ""


def _distinct(files: Iterable[Path]) -> list[Path]:
    """Return the files, sorted, each under one of its names: its own, not a link's, the shortest of several."""
    own: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (file.is_symlink(), len(file.parts), file)):
        own.setdefault(os.path.realpath(file), file)
    return sorted(own.values())


def _is_data(name: str) -> bool:
    leftover = name.startswith(".") or name.endswith("~") or (name.startswith("#") and name.endswith("#"))
    return not leftover and name != "__pycache__"


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and those below it. Links to folders are followed, but for those that lead back."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    root, walked = os.path.realpath(folder), set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(path)
        if real in walked or (real != root and os.path.commonpath([real, root]) == real):
            folders.clear()
            continue
        walked.add(real)
        folders[:] = filter(_is_data, folders)
        yield from (Path(path, name) for name in filter(_is_data, files))


def _matches(pattern: str) -> Iterator[Path]:
    """Yield the files that match a pattern; names that it spells out are taken as they are."""
    parts = Path(pattern).parts
    spelled = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    # glob's own ** would follow links in circles.
    deep = parts.index("**") if "**" in parts else len(parts)
    for name in glob.glob(str(Path(*parts[:deep]))):
        path = Path(name)
        if all(map(_is_data, path.parts[spelled:])):
            if deep == len(parts):
                yield from [] if path.is_dir() else [path]
            elif path.is_dir():
                yield from (file for file in _in_folder(path) if _fits(file.parts[len(path.parts) :], parts[deep:]))


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether the parts of a path fit those of a pattern, of which ** stands for any number, also none."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[number:], patterns[1:]) for number in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def find_sets(path: str, endings: Sequence[str], key: str = "data.path") -> list[tuple[Path, ...]]:
    """Return the files PATH.ENDING of each ending, compressed or not; of a pattern one set for each of its matches,
    sorted. Raises UserError for those that are missing."""
    named = str(Path(path).expanduser())
    stems = [named]
    if named and glob.has_magic(named) and _with_ending(named, endings[0]) is None:
        ends = [f".{endings[0]}{compressed}" for compressed in ("", *COMPRESSED)]
        stems = sorted({str(file)[: -len(end)] for end in ends for file in _matches(named + end)})
    sets = [[_with_ending(stem, ending) for ending in endings] for stem in stems]
    for stem, files in zip(stems, sets, strict=True):
        for ending, file in zip(endings, files, strict=True):
            if file is None:
                there = sorted(other.name for other in _beside(Path(stem)))
                shown = f"; beside it are {', '.join(there[:9])}" if there else ""
                raise UserError(f"{key}: no file {stem}.{ending}, compressed or not{shown}")
    if not sets:
        raise UserError(f"{key}: no file {path}.{endings[0]}; give what the names of the files begin with, DIR/train")
    return [tuple(file for file in files if file) for files in sets]


def _with_ending(stem: str, ending: str) -> Path | None:
    names = (Path(f"{stem}.{ending}{compressed}") for compressed in ("", *COMPRESSED))
    return next((name for name in names if name.is_file()), None)


def _beside(stem: Path) -> Iterator[Path]:
    yield from (file for file in stem.parent.glob(glob.escape(stem.name) + ".*") if _is_data(file.name))

"""Which files are data, how they are read, and what is said of the others."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from jaxformer.data.files import Files, JSONLines, Parquet, Text
from jaxformer.errors import UserError

ALL = {"validation_share": 1e-12}


def fill(folder: Path, *names: str) -> Path:
    """Write files whose text is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return folder


def names(path: Path | str, kind: Any = Text) -> list[str]:
    root = str(path).partition("*")[0].rstrip("/")
    return [os.path.relpath(file, root) for file in kind(path=str(path)).files()]


def left_out(path: Path | str, kind: Any = Text) -> dict[str, int]:
    found = kind(path=str(path)).left_out_files()
    return {what.removeprefix("files left out: "): counts["count"] for what, counts in found.items()}


def refusal(source: Files) -> str:
    with pytest.raises(UserError) as caught:
        list(source.documents("train"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


LEFTOVERS = (
    ".hidden.txt", "a.txt~", "#a.txt#", ".a.txt.swp", ".git/a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "old~/a.txt",
    "#b#/c/a.txt", "__pycache__/a.txt", "deep/.cache/x/a.txt", "._a.txt",
)  # fmt: skip


@pytest.mark.parametrize("pattern", ["", "/**/*", "/**/*.txt"])
def test_editors_and_tools_leave_no_data(pattern: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "texts", "a.txt", "deep/b.txt", *LEFTOVERS)
    assert names(f"{folder}{pattern}") == ["a.txt", "deep/b.txt"]
    assert left_out(f"{folder}{pattern}") == {}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_is_named_is_data(name: str, tmp_path: Path) -> None:
    path = fill(tmp_path, name) / name
    assert list(Text(path=str(path), **ALL).documents("train")) == [name]
    # So it is where the folder that is given, or a folder above it, has such a name.
    if "/" in name:
        assert names(path.parent) == [path.name]
        assert names(f"{path.parent}/*.txt") == [path.name]


@pytest.mark.parametrize(
    ("kind", "present", "read", "others"),
    [
        (Text, "a.txt b.TXT c.md d.jsonl e.pdf f.jsonl g h.py", "a.txt b.TXT c.md",
         {".jsonl": 2, ".pdf": 1, "no suffix": 1, ".py": 1}),
        (Text, "a.txt.gz b.rst c.csv.gz", "a.txt.gz b.rst", {".csv": 1}),
        (Text, "wiki_00 wiki_01 x.parquet", "wiki_00 wiki_01", {".parquet": 1}),
        (Text, "train.raw valid.raw data.json", "train.raw valid.raw", {".json": 1}),
        (JSONLines, "a.jsonl b.ndjson c.jsonl.xz i.json d.txt", "a.jsonl b.ndjson c.jsonl.xz", {".json": 1, ".txt": 1}),
        (JSONLines, "a.json README.md", "a.json", {".md": 1}),
        (Parquet, "a.parquet README.md b.parquet", "a.parquet b.parquet", {".md": 1}),
    ],
)  # fmt: skip
def test_of_several_kinds_one_is_read_and_the_others_are_counted(
    kind: Any, present: str, read: str, others: dict[str, int], tmp_path: Path
) -> None:
    fill(tmp_path, *present.split())
    for path in (tmp_path, f"{tmp_path}/*"):
        assert (names(path, kind), left_out(path, kind)) == (read.split(), others)
    whole = kind(path=str(tmp_path)).left_out_files()
    assert {counts["of"] for counts in whole.values()} == {len(present.split())}


def test_a_pattern_that_names_a_suffix_gets_it(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.log", "c.csv", "d.csv.gz")
    assert names(f"{tmp_path}/*.log") == ["b.log"]
    assert Text(path=f"{tmp_path}/[bc].csv").files() == [tmp_path / "c.csv"]
    assert left_out(f"{tmp_path}/*.csv") == {"files read as plain text, .csv; data.name=csv reads their fields": 1}


def test_empty_files_and_broken_links_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere")
    assert (names(tmp_path), left_out(tmp_path)) == (["a.txt"], {"empty": 1, "broken link": 1})
    (tmp_path / "a.txt").write_bytes(b"")
    assert f"no file of plain text in {tmp_path} (1 broken link, 2 empty)" in refusal(Text(path=str(tmp_path)))


def test_a_compressed_copy_beside_its_file_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "a.txt.gz", "b.txt.gz")
    assert (names(tmp_path), left_out(tmp_path)) == (["a.txt", "b.txt.gz"], {".gz beside the same file": 1})


@pytest.mark.parametrize("pattern", ["", "/**/*"])
def test_each_file_is_read_once_whatever_links_lead_to_it(pattern: str, tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "far.txt")
    folder = fill(tmp_path / "texts", "sub/a.txt", "b.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "b.txt")
    (folder / "other").symlink_to(outside)
    (folder / "far.txt").symlink_to(outside / "far.txt")
    found = Text(path=f"{folder}{pattern}").files()
    assert sorted(path.resolve().name for path in found) == ["a.txt", "b.txt", "far.txt"]
    linked = tmp_path / "link"
    linked.symlink_to(folder / "sub")
    assert "a.txt" in [path.name for path in Text(path=str(linked)).files()]


def test_json_lines_read_as_plain_text_are_said(tmp_path: Path) -> None:
    for name, advice in (("a.jsonl", "; data.name=json_lines reads their fields"), ("a.xls", "")):
        path = fill(tmp_path, name) / name
        what = f"files read as plain text, {path.suffix}{advice}"
        assert Text(path=str(path)).left_out_files() == {what: {"count": 1, "of": 1}}


# Compressed files.

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_are_read(suffix: str, tmp_path: Path) -> None:
    texts = [f"Text {number} é" for number in range(5000)]
    compress = COMPRESSORS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(compress("\n\n".join(texts).encode()))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(lines.encode()))
    for source in (Text(path=str(tmp_path), **ALL), JSONLines(path=str(tmp_path), **ALL)):
        assert list(source.documents("train")) == texts


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("damage", ["cut", "other", "flipped"])
def test_a_damaged_archive_is_one_line(suffix: str, damage: str, tmp_path: Path) -> None:
    whole = COMPRESSORS[suffix]("".join(f"{number}\n\n" for number in range(20000)).encode())
    flipped = whole[: len(whole) // 2] + bytes(255 - byte for byte in whole[len(whole) // 2 :])
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes({"cut": whole[:-20], "other": b"plain text", "flipped": flipped}[damage])
    message = refusal(Text(path=str(path)))
    assert message.startswith(f"{path}: ") and "damaged" in message and "archive" in message


# What is no UTF-8.

GERMAN = "Schöne Grüße aus Köln,\n\nund viel Spaß!\n"
RUSSIAN, CHINESE = "Первое предложение.\n\nИ второе.\n", "这是第一句话。\n\n一共两句。\n"


@pytest.mark.parametrize(
    ("text", "encoding", "name", "option"),
    [
        (GERMAN, "utf-16", "UTF-16LE", "UTF-16LE"),
        *((text, f"utf-16-{end}", f"UTF-16{end.upper()}", f"UTF-16{end.upper()}")
          for text in (GERMAN, RUSSIAN, CHINESE) for end in ("le", "be")),
        ("\ufeff" + GERMAN, "utf-16-be", "UTF-16BE", "UTF-16BE"),
        (GERMAN, "latin-1", "Latin-1", "ISO-8859-1"),
        ("été", "latin-1", "Latin-1", "ISO-8859-1"),
        ("He said “no” – twice.", "cp1252", "Windows-1252", "WINDOWS-1252"),
        (RUSSIAN, "koi8-r", "not UTF-8 text", "ENCODING"),
        (CHINESE, "gbk", "not UTF-8 text", "ENCODING"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Text, JSONLines])
def test_other_encodings_are_named(kind: Any, text: str, encoding: str, name: str, option: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = text if kind is Text else "".join(f'{{"text": "{line}"}}\n' for line in text.splitlines())
    path.write_bytes(content.encode(encoding))
    if kind is JSONLines and text.startswith("\ufeff"):
        path.write_bytes(("\ufeff" + content.replace("\ufeff", "")).encode(encoding))
    message = refusal(kind(path=str(path), **ALL))
    assert message.startswith(str(path)) and name in message and f"iconv -f {option} -t UTF-8" in message
    path.write_bytes(content.encode())  # as advised
    assert list(kind(path=str(path), **ALL).documents("train"))


def test_a_damaged_byte_in_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n" + "é".encode() + b" \xff\n")
    message = refusal(Text(path=str(tmp_path / "a.txt")))
    assert f"{tmp_path}/a.txt:3: not UTF-8 text (" in message and "Latin" not in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7\n...", "a PDF document"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (gzip.compress(b"text", mtime=0), "compressed with gzip; name it ….gz"),
        (bytes(range(256)), "bytes of zero"),
    ],
)
def test_other_formats_are_named(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert what in refusal(Text(path=str(path)))


def test_a_parquet_file_is_no_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert "data.name=parquet reads it" in refusal(Text(path=str(tmp_path / "a.parquet")))

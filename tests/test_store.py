"""Token stores: the same tokens as one by one, where documents and sentences begin, and what is taken for a store."""

import bz2
import dataclasses
import errno
import gzip
import json
import lzma
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.data.files import JSONLines, Text
from jaxformer.data.records import Source
from jaxformer.data.sentences import sentence_starts
from jaxformer.data.store import CHUNK, ExampleStore, Store, build_examples, build_store
from jaxformer.errors import UserError
from jaxformer.tasks.classification import Classification
from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, train_tokenizer

ALL = {"validation_share": 1e-12}
DOCUMENTS = [
    "The fox jumps. The dog sleeps on!",
    "Boxes (five dozen) hold jugs.  “Quoted,” he said. 12 more 日本語 follow? Ünder 😀 them",
    "No full stop here",
    "A heading\n\nand text below. It ends.",
]
SETTINGS: dict[str, Any] = {
    "byte_bpe": ByteBPE(vocab_size=300),
    "wordpiece": WordPiece(vocab_size=120),
    "unigram": Unigram(vocab_size=80, num_sentinels=4),
}
TRAINED = {name: train_tokenizer(config, DOCUMENTS) for name, config in SETTINGS.items()}
WORDPIECE = TRAINED["wordpiece"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Source):
    """Documents, or examples with fields a and b, that the test holds in its hand."""

    texts: tuple[str, ...] = ()
    seconds: tuple[str, ...] = ()

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, text in enumerate(self.texts):
            second = self.seconds[number] if self.seconds else ""
            yield f"given[{number}]", {"text": text, "a": text, "b": second, "label": str(number % 3)}

    def fingerprint(self, split: str) -> str:
        return json.dumps([self.texts, self.seconds])


def given(*texts: str) -> Given:
    return Given(texts=texts)


class Refusing(Given):
    """The same source, whose text must not be read again."""

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        raise AssertionError("tokenised again")


def documents_of(store: Store) -> list[list[int]]:
    pairs = zip(store.document_offsets[:-1], store.document_offsets[1:], strict=True)
    return [store.tokens[start:end].tolist() for start, end in pairs]


def the_folder(cache: Path) -> Path:
    (folder,) = (cache / "stores").iterdir()
    return folder


# Tokens, documents, sentence starts.


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_one_document_at_a_time(name: str, tmp_path: Path) -> None:
    tokenizer = TRAINED[name]
    store = build_store(given(*DOCUMENTS), "train", tokenizer, tmp_path)
    assert documents_of(store) == [tokenizer.encode(text).tolist() for text in DOCUMENTS]
    assert store.tokens.dtype == np.uint16


def test_many_documents_keep_their_order_over_chunks(tmp_path: Path) -> None:
    texts = [f"Fox {number}. Dog {number % 7}" for number in range(2 * CHUNK + 3)]
    store = build_store(given(*texts), "train", WORDPIECE, tmp_path)
    assert documents_of(store) == [WORDPIECE.encode(text).tolist() for text in texts]
    assert (np.diff(store.sentence_starts) > 0).all()


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WORDPIECE.backend)
    tokenizer.vocab_size = 2**16 + 1
    store = build_store(given(*DOCUMENTS), "train", tokenizer, tmp_path)
    assert store.tokens.dtype == np.uint32
    assert documents_of(store) == [WORDPIECE.encode(text).tolist() for text in DOCUMENTS]


@pytest.mark.parametrize("name", SETTINGS)
def test_sentence_starts_are_tokens_that_begin_one(name: str, tmp_path: Path) -> None:
    tokenizer = TRAINED[name]
    store = build_store(given(*DOCUMENTS), "train", tokenizer, tmp_path)
    expected = []
    for text, offset in zip(DOCUMENTS, store.document_offsets, strict=False):
        for start in sentence_starts(text):
            # The token that covers the character: how many begin before the next character does.
            spans = tokenizer.backend.encode(text, add_special_tokens=False).offsets
            expected.append(offset + next(i for i, (low, high) in enumerate(spans) if low <= start < high))
    assert store.sentence_starts.tolist() == sorted({*map(int, expected), *map(int, store.document_offsets[:-1])})


def test_sentence_starts_by_hand(tmp_path: Path) -> None:
    store = build_store(given("The fox. The dog e.g. The end\n\nbox", "dog"), "train", WORDPIECE, tmp_path)
    bounds = [*store.sentence_starts, len(store.tokens)]
    sentences = [WORDPIECE.decode(store.tokens[start:end]) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    assert sentences == ["the fox.", "the dog e. g. the end", "box", "dog"]
    assert store.sentence_starts[3] == store.document_offsets[1]


def test_a_sentence_that_begins_with_a_dropped_character_begins_with_the_next(tmp_path: Path) -> None:
    store = build_store(given("The fox.\n\n\x01\x02dog"), "train", WORDPIECE, tmp_path)
    assert WORDPIECE.decode(store.tokens[store.sentence_starts[1] :]) == "dog"


def test_a_document_begins_a_sentence_whatever_of_it_is_dropped(tmp_path: Path) -> None:
    store = build_store(given("\x01" * 9 + "fox", "dog"), "train", WORDPIECE, tmp_path)
    assert store.sentence_starts.tolist() == store.document_offsets[:-1].tolist()


def test_documents_without_tokens_are_left_out(tmp_path: Path) -> None:
    store = build_store(given("", "fox", "   ", "\x01", "dog"), "train", WORDPIECE, tmp_path)
    assert documents_of(store) == [WORDPIECE.encode(text).tolist() for text in ("fox", "dog")]
    assert store.sentence_starts.tolist() == store.document_offsets[:-1].tolist()


def test_a_store_without_text_is_empty(tmp_path: Path) -> None:
    store = build_store(given("", " "), "train", WORDPIECE, tmp_path)
    assert len(store.tokens) == 0 and store.document_offsets.tolist() == [0]
    assert build_store(Refusing(texts=("", " ")), "train", WORDPIECE, tmp_path).fingerprint == store.fingerprint


def test_progress_counts_documents(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build_store(given(*["fox"] * (CHUNK + 1)), "train", WORDPIECE, tmp_path, lambda *call: calls.append(call))
    assert calls == [("tokenising train", n, total) for n, total in ((CHUNK, 0), (CHUNK + 1, 0), (CHUNK + 1,) * 2)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_progress_over_files_says_how_many_documents_there_may_be(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    lines = np.random.default_rng(0).integers(10**9, 10**10, 12 * CHUNK)  # that no compression makes small
    with {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](path, "wt") as file:
        file.writelines(f"{number}\n" for number in lines)
    calls: list[tuple[int, int]] = []
    source = Text(path=str(path), document="line", **ALL)
    build_store(source, "train", WORDPIECE, tmp_path, lambda _, done, total: calls.append((done, total)))
    assert calls[-1] == (12 * CHUNK, 12 * CHUNK)
    assert all(done < total for done, total in calls[:-1])
    assert calls[len(calls) // 2][1] == pytest.approx(12 * CHUNK, rel=0.5)


def of(fields: tuple[str, ...]) -> Classification:
    """A task that reads these fields."""
    return Classification(text_fields=fields)


# What is taken for a store.


def test_a_second_build_opens_what_is_there(tmp_path: Path) -> None:
    first = build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)
    again = build_store(Refusing(texts=tuple(DOCUMENTS)), "train", WORDPIECE, tmp_path)
    assert again.fingerprint == first.fingerprint and documents_of(again) == documents_of(first)
    np.testing.assert_array_equal(again.sentence_starts, first.sentence_starts)


def test_other_text_tokenizers_and_splits_have_other_stores(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The fox")
    fingerprints = set()
    for tokenizer in TRAINED.values():
        fingerprints.add(build_store(Text(path=str(path), **ALL), "train", tokenizer, tmp_path).fingerprint)
    fingerprints.add(build_store(Text(path=str(path), **ALL), "validation", WORDPIECE, tmp_path).fingerprint)
    path.write_text("The dog sleeps")
    changed = build_store(Text(path=str(path), **ALL), "train", WORDPIECE, tmp_path)
    assert len(fingerprints | {changed.fingerprint}) == 5
    splits = [build_store(given("The fox"), split, WORDPIECE, tmp_path).fingerprint for split in ("train", "test")]
    assert splits[0] != splits[1]
    assert documents_of(changed) == [WORDPIECE.encode("The dog sleeps").tolist()]


def truncated(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])


def emptied(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


def removed(folder: Path, name: str) -> None:
    (folder / name).unlink()


@pytest.mark.parametrize("damage", [truncated, emptied, removed])
@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "sentences.npy", "meta.json"])
def test_a_damaged_store_is_made_again(damage: Any, name: str, tmp_path: Path) -> None:
    first = documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path))
    damage(the_folder(tmp_path), name)
    with pytest.raises(AssertionError, match="tokenised again"):
        build_store(Refusing(texts=tuple(DOCUMENTS)), "train", WORDPIECE, tmp_path)
    assert documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)) == first
    assert documents_of(build_store(Refusing(texts=tuple(DOCUMENTS)), "train", WORDPIECE, tmp_path)) == first


@pytest.mark.parametrize(
    "name", ["tokens.bin", "documents.npy", "sentences.npy", "records.bin", "records.npy", "meta.json"]
)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.97])
def test_a_flipped_bit_is_noticed_and_said(name: str, place: float, tmp_path: Path) -> None:
    def build(note: Any = None) -> list[dict[str, Any]]:
        store = build_examples(examples(), "train", WORDPIECE, of(("a", "b")), tmp_path, None, note)
        return [plain(store[number]) for number in range(len(store))]

    first, notes = build(), []
    path = the_folder(tmp_path) / name
    whole, times = path.read_bytes(), path.stat()
    at = int(len(whole) * place)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(notes.append) == first and path.read_bytes() == whole
    assert len(notes) == 1 and str(path) in notes[0] and notes[0].endswith("; the token store is made again")
    assert build(notes.append) == first and len(notes) == 1


@pytest.mark.parametrize("content", ["[]", "{}", '{"sizes": {}}', '{"sizes": 3, "dtype": "uint16"}', "\x00"])
def test_a_store_with_other_facts_about_it_is_made_again(content: str, tmp_path: Path) -> None:
    first = documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path))
    (the_folder(tmp_path) / "meta.json").write_text(content)
    assert documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)) == first


def test_offsets_that_do_not_fit_the_tokens_are_noticed(tmp_path: Path) -> None:
    first = documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path))
    offsets = np.load(the_folder(tmp_path) / "documents.npy")
    np.save(the_folder(tmp_path) / "documents.npy", offsets + 1)
    assert documents_of(build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)) == first


WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
from jaxformer.data.files import Text
from jaxformer.data.store import build_store
from jaxformer.tokenizers import load_tokenizer

def progress(activity, done, total):
    print("at work", flush=True)
    sys.stdin.read()

folder = Path(sys.argv[1])
source = Text(path=str(folder / "a.txt"), document="line")
build_store(source, "train", load_tokenizer(folder / "t.json"), folder, progress)
"""


def test_a_kill_in_the_middle_leaves_nothing_that_is_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The fox.\n" * 3 * CHUNK)
    WORDPIECE.save(tmp_path / "t.json")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    left = [folder.name for folder in (tmp_path / "stores").iterdir()]
    assert len(left) == 1 and left[0].startswith(".")
    source = Text(path=str(tmp_path / "a.txt"), document="line")
    store = build_store(source, "train", WORDPIECE, tmp_path)
    assert documents_of(store) == [WORDPIECE.encode("The fox.").tolist()] * len(list(source.documents("train")))


def test_a_failure_in_the_middle_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fox"}\n' * 2 * CHUNK + "broken\n")
    with pytest.raises(UserError, match=f"a.jsonl:{2 * CHUNK + 1}: not JSON"):
        build_store(JSONLines(path=str(path), **ALL), "train", WORDPIECE, tmp_path)
    assert list((tmp_path / "stores").iterdir()) == []


def test_another_process_may_be_quicker(tmp_path: Path) -> None:
    def quicker(activity: str, done: int, total: int) -> None:
        if not total:
            build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)

    store = build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path, quicker)
    assert documents_of(store) == [WORDPIECE.encode(text).tolist() for text in DOCUMENTS]
    assert the_folder(tmp_path) == store.path


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jaxformer.data.store._append", full)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}.*: the disk is full") as caught:
        build_store(given(*DOCUMENTS), "train", WORDPIECE, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_store_travels_to_other_processes_without_its_tokens(tmp_path: Path) -> None:
    store = build_store(given(*["The fox jumps"] * 2000), "train", WORDPIECE, tmp_path)
    small = dataclasses.replace(store, sentence_starts=store.sentence_starts[:1], document_offsets=np.zeros(1))
    sent = pickle.dumps(small)
    assert len(sent) < store.tokens.nbytes / 4
    copied = pickle.loads(sent)
    np.testing.assert_array_equal(copied.tokens, store.tokens)
    assert isinstance(copied.tokens, np.memmap) and copied.path == store.path
    by_hand = dataclasses.replace(store, tokens=np.arange(3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(by_hand)).tokens, np.arange(3))


# Labelled examples.


def examples(count: int = 7) -> Given:
    return Given(
        texts=tuple(f"Fox {n}." for n in range(count)), seconds=tuple(["", "Dog. Sleeps"][n % 2] for n in range(count))
    )


def plain(example: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "label" else value.tolist() for key, value in example.items()}


def test_examples_are_tokens_per_field_and_the_class(tmp_path: Path) -> None:
    source = examples()
    store = build_examples(source, "train", WORDPIECE, of(("a", "b")), tmp_path)
    assert len(store) == 7
    for number, example in enumerate(source.examples("train", ("a", "b"))):
        expected = {field: WORDPIECE.encode(example[field]).tolist() for field in ("a", "b")}
        assert plain(store[number]) == expected | {"label": number % 3}
        assert store[number]["a"].dtype == store[number]["b"].dtype == np.int32


def test_examples_are_opened_the_second_time(tmp_path: Path) -> None:
    def everything(store: ExampleStore) -> list[dict[str, Any]]:
        return [plain(store[number]) for number in range(len(store))]

    source = examples()
    first = build_examples(source, "train", WORDPIECE, of(("a", "b")), tmp_path)
    refusing = Refusing(texts=source.texts, seconds=source.seconds)
    assert everything(build_examples(refusing, "train", WORDPIECE, of(("a", "b")), tmp_path)) == everything(first)
    with pytest.raises(AssertionError, match="tokenised again"):
        build_examples(refusing, "train", WORDPIECE, of(("b", "a")), tmp_path)
    truncated(first.store.path, "records.npy")
    with pytest.raises(AssertionError, match="tokenised again"):
        build_examples(refusing, "train", WORDPIECE, of(("a", "b")), tmp_path)
    assert everything(build_examples(source, "train", WORDPIECE, of(("a", "b")), tmp_path)) == everything(first)


def test_each_subset_of_examples_has_its_own_store(tmp_path: Path) -> None:
    whole = examples()
    few, others = (dataclasses.replace(whole, max_examples=4, subset_seed=seed) for seed in (0, 1))
    stores = [build_examples(source, "train", WORDPIECE, of(("a",)), tmp_path) for source in (whole, few, others)]
    assert [len(store) for store in stores] == [7, 4, 4]
    assert len({store.store.fingerprint for store in stores}) == 3
    held_out = [build_examples(source, "validation", WORDPIECE, of(("a",)), tmp_path) for source in (whole, few)]
    assert held_out[0].store.fingerprint == held_out[1].store.fingerprint


def test_documents_and_examples_of_one_source_are_kept_apart(tmp_path: Path) -> None:
    source = examples()
    store = build_store(source, "train", WORDPIECE, tmp_path)
    assert build_examples(source, "train", WORDPIECE, of(("a",)), tmp_path).store.fingerprint != store.fingerprint


def test_a_split_without_examples_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="no labelled examples in the train split"):
            build_examples(given(), "train", WORDPIECE, of(("a",)), tmp_path)

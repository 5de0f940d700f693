"""From a config's data section to what the batches draw from: sources, token stores, row indexes, mixtures."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.batches import Member, evaluated
from jaxformer.data.kinds import JOINED
from jaxformer.data.labels import classes_among
from jaxformer.data.left_out import LeftOut, count, total
from jaxformer.data.records import Source
from jaxformer.data.rows import Rows, build_rows
from jaxformer.data.sealed import Damaged, Note, seal, told, unsealed
from jaxformer.data.sources import SourceMixture
from jaxformer.data.store import ExampleStore, Store, build_examples, build_pairs, build_store
from jaxformer.errors import UserError
from jaxformer.objectives import Denoising, Padded, Part, Supervision
from jaxformer.storage import cache_folder
from jaxformer.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

Progress = Callable[[str, int, int], None]


def weighted_sources(source: Source) -> list[tuple[Source, float]]:
    """Return a mixture's members with their weights; any other source is its own only member."""
    return source.sources() if isinstance(source, SourceMixture) else [(source, 1.0)]


@dataclasses.dataclass(frozen=True)
class ExampleRows:
    """The rows of a task: one for each example, or several (windows), one behind the other.

    Classes may be renumbered: a run may number its labels in another order than the data, or have more of them.
    """

    examples: ExampleStore
    first: np.ndarray  # int64 [examples + 1]: the first row of each example, and the number of rows
    classes: Sequence[int] | None = None  # the run's by the data's; None: they are the same

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        place = int(np.searchsorted(self.first, number, side="right")) - 1
        example = self.examples[place]
        label = example["label"]
        if self.classes is not None and label is not None:
            label = [self.classes[one] for one in label] if isinstance(label, list) else self.classes[label]
        return example | {"label": label, "window": int(number) - int(self.first[place])}


class Chosen(Sequence[Any]):
    """Some of the rows, by their numbers, read when they are asked for."""

    def __init__(self, rows: Any, numbers: Sequence[int]) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._rows[number] for number in self._numbers[place]]
        return self._rows[self._numbers[place]]


def num_records(rows: Any) -> int:
    """Return how many documents, pairs or examples of the data are in rows that `prepare` made."""
    if isinstance(rows, Rows):
        documents = len(rows.store.document_offsets) - 1
        return documents // 2 if rows.settings["rows"] == "pairs" else documents
    return len(rows.examples)


def evaluated_rows(rows: Any, limit: int, seed: int) -> Sequence[int]:
    """Return the numbers of the rows that are evaluated: all, or those of `limit` examples drawn by the seed; of an
    objective, `limit` rows."""
    if not isinstance(rows, ExampleRows):
        return evaluated(len(rows), limit, seed)
    examples = evaluated(len(rows.examples), limit, seed)
    return [row for example in examples for row in range(int(rows.first[example]), int(rows.first[example + 1]))]


def check_split(source: Source, split: str) -> None:
    """Raise UserError where a source, or a member of a mixture, has no such split."""
    corpora = weighted_sources(source)
    for number, (corpus, _) in enumerate(corpora):
        corpus.check_split(split, "data" if corpus is source else f"data.members[{number}]")


def num_labelled(source: Source, task: Supervision) -> int:
    """Return how many labelled examples of a task a source has to train on, whatever `max_examples` takes of them."""
    every, choices = dataclasses.replace(source, max_examples=0), task.answering.choice_fields if task.answering else ()
    return sum(1 for _ in every.examples("train", tuple(task.fields), task.label_kind, None, choices))


def corpus_tokenizer(
    config: Any, source: Source, supervision: Supervision, progress: Progress | None = None, note: Note | None = None
) -> Tokenizer:
    """Return the tokenizer that `config` asks for, trained on the training text unless that was done before. `note` is
    told of a damaged one, which is trained again."""
    if not config.trained:
        return load_tokenizer(config.path)
    for corpus, _ in weighted_sources(source):
        corpus.mend(note)
    fingerprints = [
        [
            corpus.fingerprint("train"),
            *learnt.fields,
            *([learnt.label_kind] if learnt.label_kind in JOINED else []),
            *_said(corpus, learnt),
        ]
        for corpus, learnt in _read(source, supervision)
    ]
    key = json.dumps([type(config).__name__, dataclasses.asdict(config), fingerprints])
    path = cache_folder() / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    record = path.with_suffix(".sealed.json")
    try:
        if unsealed(record) is not None:
            return load_tokenizer(path)
    except Damaged as error:
        told(error, "the tokenizer", note)
    if progress:
        progress("training the tokenizer", 0, 0)
    train_tokenizer(config, training_texts(source, supervision)).save(path)
    seal(record, [path.name], {})
    return load_tokenizer(path)


def training_texts(source: Source, supervision: Supervision) -> Iterator[str]:
    """Yield every text of the training split that an objective or a task reads, and what it writes, once."""
    for corpus, learnt in _read(source, supervision):
        yield from corpus.texts("train", tuple(learnt.fields), kind=learnt.label_kind)
        yield from _said(corpus, learnt)


def _read(source: Source, supervision: Supervision) -> list[tuple[Source, Supervision]]:
    """Return the corpora that are read, each with what reads it; of several that read the same, the first."""
    corpora = [corpus for corpus, _ in weighted_sources(source)]
    read: dict[Any, tuple[Source, Supervision]] = {}
    for part in supervision.parts:
        learnt = part.objective
        for number in part.corpora or range(len(corpora)):
            if 0 <= number < len(corpora):
                key = (number, tuple(learnt.fields), learnt.label_kind, *_said(corpora[number], learnt))
                read.setdefault(key, (corpora[number], learnt))
    return list(read.values())


def _said(corpus: Source, learnt: Supervision) -> list[str]:
    """Return what a task writes, or reads in every example, that is not in the fields of a corpus."""
    if learnt.answering is None or not learnt.decodes:
        return []
    return learnt.answering.said(corpus.label_names(learnt.label_kind))


def prepare(
    source: Source, supervision: Supervision, tokenizer: Tokenizer, split: str, *, seed: int,
    progress: Progress | None = None, note: Note | None = None, cache: Path | None = None,
) -> list[Member]:  # fmt: skip
    """Return the rows of an objective, or the examples of a task, of one split: a member for each corpus of a mixture
    and for each objective that reads it. Stores are kept in `cache` (None: where all of them are); `note` is told of
    damaged ones, which are made again.

    Raises UserError for malformed data, an empty split, and a number of a corpus that there is not.
    """
    corpora, parts = weighted_sources(source), supervision.parts
    cache = cache or cache_folder()
    for member, _ in corpora:
        member.mend(note)
    read = [
        {
            corpus: _rows(corpora[corpus][0], part.objective, tokenizer, split, seed, cache, progress, note)
            for corpus in _wanted(part, number, len(corpora))
        }
        for number, part in enumerate(parts)
    ]
    members: list[Member] = []
    for number, (part, found) in enumerate(zip(parts, read, strict=True)):
        # An objective says itself how often it is drawn, and the data only from which of its corpora; of several tasks
        # the data says it all (T5, section 3.5.2).
        rates = _rates(source, read if supervision.labelled else [found], len(corpora))
        if supervision.labelled:
            share = sum(
                other.weight * rates[corpus] for other, rows in zip(parts, read, strict=True) for corpus in rows
            )
        else:
            share = sum(rates[corpus] for corpus in found)
        transform = Padded(part.objective, supervision.shapes) if len(parts) > 1 else part.objective
        for corpus, (rows, left_out) in found.items():
            weight = part.weight * rates[corpus] / share
            members.append(Member(rows, transform, weight, _name(part, number, corpus, parts, corpora), left_out))
    return members


def _wanted(part: Part, number: int, count: int) -> Sequence[int]:
    """Return the numbers of the corpora that a part reads. Raises UserError for one that there is not."""
    if outside := [corpus for corpus in part.corpora if not 0 <= corpus < count]:
        section = "task" if part.objective.labelled else "objective"
        raise UserError(
            f"{section}.members[{number}].corpora: there is no data.members[{outside[0]}]; "
            f"their numbers are 0 to {count - 1}"
        )
    return part.corpora or range(count)


def _rates(source: Source, read: Sequence[Mapping[int, tuple[Any, Any]]], count: int) -> list[float]:
    """Return each corpus's share of the examples, by the rows of those that are read."""
    if not isinstance(source, SourceMixture):
        return [1.0]
    return source.rates(
        [max(len(found[corpus][0]) if corpus in found else 0 for found in read) for corpus in range(count)]
    )


def _name(part: Part, number: int, corpus: int, parts: Sequence[Part], corpora: Sequence[Any]) -> str:
    """Return what a member is called in results: by its part where there are several, and by its corpus."""
    of_several = part.title or (f"{part.objective.name}{number}" if len(parts) > 1 else "")
    alone = len(corpora) == 1 or (part.title and len(part.corpora) == 1)
    return "-".join(name for name in (of_several, "" if alone else f"data{corpus}") if name)


_NEARLY_ALL = 0.95  # from this share of equal labels on a head learns little


def learnt_from(member: Member) -> Supervision:
    """Return the objective or task that a member's rows are for; of a mixture, its part."""
    learnt: Any = member.transform
    return learnt.objective if isinstance(learnt, Padded) else learnt


def doubts(members: Sequence[Member]) -> list[str]:
    """Return what to say, before training, of rows whose sentences tell an objective nothing."""
    said = []
    for member in members:
        rows, objective = member.rows, learnt_from(member)
        if not isinstance(rows, Rows) or not len(rows):
            continue
        where = f" of {member.name}" if member.name else ""
        documents = int((np.diff(rows.store.document_offsets) > 0).sum())
        advice = "give one document a file or a blank line between them, and sentences that the splitter finds "
        advice += "(data.sentences=lines: one a line)"
        if "label" in rows.index:
            share = float(rows.index["label"].mean())
            if documents == 1:
                said.append(
                    f"next-sentence pairs{where}: the corpus is one document, so a random second part comes from the "
                    f"same one; {advice}"
                )
            if max(share, 1 - share) >= _NEARLY_ALL:
                kind = "random" if share > 0.5 else "following"
                said.append(
                    f"next-sentence pairs{where}: {max(share, 1 - share):.1%} of {len(rows)} labels are '{kind}', so "
                    f"little can be learnt from them; {advice}, or set objective.next_sentence=false"
                )
        if isinstance(objective, Denoising) and objective.permute_share > 0:
            single = float(np.mean(_sentences_of(rows.store) == 1))
            if single >= _NEARLY_ALL:
                said.append(
                    f"sentence permutation{where}: {single:.1%} of {documents} documents are one sentence, so no "
                    f"sentence of theirs changes places; {advice}"
                )
    return said


def _sentences_of(store: Store) -> np.ndarray:
    """Return how many sentences each document that has text has."""
    first = np.searchsorted(store.sentence_starts, store.document_offsets)
    return np.diff(first)[np.diff(store.document_offsets) > 0]


def _rows(
    source: Source, supervision: Supervision, tokenizer: Tokenizer, split: str, seed: int, cache: Path,
    progress: Progress | None, note: Note | None,
) -> tuple[Any, dict[str, LeftOut]]:  # fmt: skip
    """Return the rows or examples, and what of the source is not in them, by what it was counted for."""
    if supervision.labelled:
        task = supervision.answering
        assert task is not None  # what reads labelled examples is a task
        examples = build_examples(source, split, tokenizer, supervision, cache, progress, note)
        cut: LeftOut = {}
        lengths, what = examples.lengths, task.what_is_cut
        count(cut, what, int(task.is_cut(lengths).sum()), len(examples))
        fingerprint = examples.store.fingerprint
        names, labels = source.label_names(supervision.label_kind), supervision.labels
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(task.num_rows(lengths))])
        rows = ExampleRows(examples, first, None if names == labels else classes_among(names, labels))
        return rows, {fingerprint: examples.store.left_out, f"{fingerprint}: {what}": cut}
    if supervision.fields:
        store = build_pairs(source, split, tokenizer, supervision.fields, cache, progress, note)
    else:
        store = build_store(source, split, tokenizer, cache, progress, note)
    built = build_rows(store, supervision, seed, note=note, progress=progress)
    return built, {store.fingerprint: store.left_out, built.name: built.left_out}


def left_out_files(source: Source) -> LeftOut:
    """Return how many files lie where a source, or a mixture's members, read, and are not read, or not as they seem."""
    return total(corpus.left_out_files() for corpus, _ in weighted_sources(source))


def left_out_of(members: Iterable[Member]) -> LeftOut:
    """Return what is not in the rows of these members, or cut in them: of what several share, once."""
    parts: dict[str, LeftOut] = {}
    for member in members:
        parts.update(member.left_out)
    return total(parts.values())

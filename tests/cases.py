"""A vocabulary, hand-written rows and stores, and one case of every objective, family and visibility."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from jaxformer.data import preparing, sources
from jaxformer.data.batches import Member
from jaxformer.data.store import Store
from jaxformer.errors import UserError
from jaxformer.objectives import (
    BertStyle,
    CausalLM,
    Denoising,
    Deshuffling,
    DocumentRotation,
    DropTokens,
    MaskedLM,
    MassStyle,
    ObjectiveMixture,
    ParallelText,
    PlainLM,
    PrefixLM,
    ReplaceSpans,
    SentencePermutation,
    SpanCorruption,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
)
from jaxformer.objectives.mixture import Padded
from jaxformer.tokenizers import Vocabulary

SPECIAL = {"pad": 0, "end": 1, "unknown": 2, "classify": 3, "separator": 4, "mask": 5, "start": 6}
PAD, END, CLS, SEP, MASK, START = (SPECIAL[role] for role in ("pad", "end", "classify", "separator", "mask", "start"))
SIZE, SENTINELS = 200, np.arange(199, 159, -1, dtype=np.int32)
WORDS = np.arange(10, 160)  # ids of ordinary tokens


def vocabulary(without: tuple[str, ...] = (), **changes: Any) -> Vocabulary:
    special = {role: number for role, number in SPECIAL.items() if role not in without}
    is_special = np.zeros(SIZE, bool)
    is_special[[*SPECIAL.values(), *SENTINELS]] = True
    values = {
        "size": SIZE,
        "special": special,
        "sentinels": SENTINELS,
        "is_special": is_special,
        "word_starts": np.arange(SIZE) % 2 == 0,  # odd ids continue a word
    }
    return Vocabulary(**(values | changes))


def carrier(family: str, visibility: str = "causal", token_types: int = 2) -> Any:
    """All that an objective or a task reads of a model's config."""
    return SimpleNamespace(family=family, visibility=visibility, token_types=token_types)


def row_of(tokens: Any, segments: Any = None, boundary: int | None = None, **values: Any) -> dict[str, Any]:
    """A row with all that any kind of row but pairs has."""
    tokens = np.array(tokens, np.int32)
    row = {
        "tokens": tokens,
        "segment_ids": np.ones(len(tokens), np.int32) if segments is None else np.array(segments, np.int32),
        "sentence_starts": np.zeros(len(tokens), bool),
        "boundary": len(tokens) // 2 if boundary is None else boundary,
        "label": 0,
        "rarity": np.ones(len(tokens)),
        "number": 0,
        "seed": 0,
    }
    return row | values


def pairs_row(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """A row of pairs of texts (source, target)."""
    sides = [side for pair in pairs for side in pair]
    number = np.repeat(np.arange(len(sides)), [len(side) for side in sides])
    row = row_of([token for side in sides for token in side], number // 2 + 1)
    return row | {"is_target": number % 2 == 1}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check(arrays: Any, **expected: Any) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)


def store_of(*documents: list[list[int]], path: Path = Path("nowhere"), name: str = "by hand") -> Store:
    """A store of documents that are lists of sentences that are lists of tokens."""
    tokens = [token for document in documents for sentence in document for token in sentence]
    lengths = [sum(map(len, document)) for document in documents]
    sentences = np.cumsum([0] + [len(sentence) for document in documents for sentence in document])[:-1]
    offsets = np.cumsum([0, *lengths])
    return Store(path, np.array(tokens, np.uint16), offsets.astype(np.int64), sentences.astype(np.int64), name)


VISIBILITIES = {
    "decoder_only": ("causal", "prefix"),
    "encoder_only": ("full", "causal", "prefix"),
    "encoder_decoder": ("causal",),
}


class Case(NamedTuple):
    """A bound objective in a model that can carry it."""

    objective: Any
    family: str
    visibility: str
    label: str

    @property
    def parts(self) -> list[tuple[Any, Any]]:
        """(What makes arrays, the objective) of each member of a mixture, or of the objective itself."""
        if isinstance(self.objective, ObjectiveMixture):
            return [(Padded(part.objective, self.objective.shapes), part.objective) for part in self.objective.parts]
        return [(self.objective, self.objective)]


_T5 = {"sequence_length": 16, "noise_density": 0.3, "mean_span_length": 2.0}
_BERT = {"sequence_length": 16, "max_predictions": 4, "masking_rate": 0.3}
MEMBERS: list[Any] = [
    *(
        CausalLM(sequence_length=16, packing=packing, document_mask=mask)
        for packing, mask in itertools.product(("windows", "documents"), (False, True))
    ),
    PrefixLM(sequence_length=16),
    MaskedLM(**_BERT, dupe_factor=2),
    MaskedLM(**_BERT, next_sentence=False, whole_word=True),
    MaskedLM(**_BERT, next_sentence=False, frequency_smoothing=0.7),
    MaskedLM(**_BERT, next_sentence=False, masks="static", dupe_factor=3),
    MaskedLM(**_BERT, masks="static", dupe_factor=2),
    SpanCorruption(**_T5),
    SpanCorruption(**_T5, inputs="drop", targets="sentinels"),
    ReplaceSpans(**_T5),
    DropTokens(**_T5),
    BertStyle(**_T5, random_share=0.4),
    MassStyle(**_T5),
    Deshuffling(sequence_length=12),
    PlainLM(sequence_length=12),
    TokenMasking(sequence_length=16, random_share=0.3),
    TokenDeletion(sequence_length=16),
    TextInfilling(sequence_length=16),
    SentencePermutation(sequence_length=16),
    DocumentRotation(sequence_length=16),
    Denoising(sequence_length=16),
    Denoising(sequence_length=16, replace="token", whole_words=False, insert_rate=0.1, rotate_probability=0.5),
    ParallelText(source_length=12, target_length=10),
    ParallelText(source_length=12, target_length=10, pack=False),
    ObjectiveMixture(
        members=(
            {"name": "span_corruption", "weight": 2.0} | _T5 | {"sequence_length": 12},
            {"name": "prefix_lm", "sequence_length": 14, "corpora": [1]},
        )
    ),
    ObjectiveMixture(
        members=(
            {"name": "causal_lm", "sequence_length": 12},
            {"name": "causal_lm", "sequence_length": 16, "packing": "documents"},
        )
    ),
    ObjectiveMixture(
        members=(
            {"name": "masked_lm", "next_sentence": False, "sequence_length": 12, "max_predictions": 2},
            {"name": "masked_lm", "next_sentence": False, "sequence_length": 16, "max_predictions": 4,
             "masks": "static", "dupe_factor": 2, "corpora": [0]},
        )
    ),
]  # fmt: skip


def draws(objective: Any) -> bool:
    """Whether two visits of one row give two examples."""
    return (
        objective.name not in ("causal_lm", "plain_lm", "parallel_text") and getattr(objective, "masks", "") != "static"
    )


def _cases() -> list[Case]:
    found = []
    for number, member in enumerate(MEMBERS):
        for family in member.families:
            for visibility in VISIBILITIES[family]:
                try:
                    carried = member.for_model(carrier(family, visibility))
                except UserError:
                    continue
                label = f"{number}-{member.name}-{family}-{visibility}"
                found.append(Case(carried.bind(vocabulary()), family, visibility, label))
    return found


CASES = _cases()


def random_row(objective: Any, seed: int = 0, length: int | None = None) -> dict[str, Any]:
    """A row of random tokens of the kind that the objective reads, as long as it asks for or of `length` tokens."""
    rng = generator(seed)
    if objective.rows == "pairs":
        lengths = [size - 1 for size in objective.row_settings["lengths"]]
        if length is not None:  # tokens in all, at most one pair
            lengths = [length // 2, length - length // 2]
        return pairs_row(tuple(rng.choice(WORDS, size) for size in lengths))
    length = objective.row_length if length is None else length
    starts = rng.random(length) < 0.2
    return row_of(rng.choice(WORDS, length), sentence_starts=starts, rarity=rng.random(length) + 0.1)


# The real way from texts to members, except that the texts are tokens already.


def _corpus(seed: int, documents: int) -> list[list[list[int]]]:
    """Documents of a token to about thirty, in sentences, of which some tokens are more frequent than others."""
    rng = generator(seed)
    shares = 1 / (1 + np.arange(len(WORDS)))
    lengths = [rng.integers(1, 9, rng.integers(1, 7)) for _ in range(documents - 1)] + [[1]]
    return [[rng.choice(WORDS, size, p=shares / shares.sum()).tolist() for size in each] for each in lengths]


CORPORA = (_corpus(0, 16), _corpus(1, 9))
_RNG = generator(2)
# The second pair has an empty side and the fourth does not fit.
SIDES = [(3, 4), (0, 5), (9, 2), (3, 19), (11, 9), (1, 1), (2, 1), (4, 3), (2, 2), (5, 6)]
TEXT_PAIRS = [[[_RNG.choice(WORDS, size).tolist()] if size else [] for size in sizes] for sizes in SIDES]


def prepared(objective: Any, folder: Path, corpora: int = 1, seed: int = 0, **data: Any) -> list[Member]:
    """Return what `prepare` makes of the hand-written corpora; `folder` keeps the row indexes."""

    def store(source: Any, *_: Any) -> Store:
        path = folder / source.path
        path.mkdir(exist_ok=True)
        return store_of(*CORPORA[int(source.path)], path=path, name=f"corpus {source.path}")

    def pairs(source: Any, *_: Any) -> Store:
        path = folder / "pairs"
        path.mkdir(exist_ok=True)
        return store_of(*itertools.chain.from_iterable(TEXT_PAIRS), path=path, name="pairs")

    members = tuple({"name": "text", "path": str(number)} for number in range(corpora))
    source = sources.SourceMixture(members=members, **data) if corpora > 1 else sources.Text(path="0")
    with mock.patch.object(preparing, "build_store", store), mock.patch.object(preparing, "build_pairs", pairs):
        tokenizer: Any = None
        return preparing.prepare(source, objective, tokenizer, "train", seed=seed)


def members_of(case: Case, folder: Path, seed: int = 0) -> list[Member]:
    return prepared(case.objective, folder, corpora=2 if isinstance(case.objective, ObjectiveMixture) else 1, seed=seed)


def objective_of(member: Member) -> Any:
    return getattr(member.transform, "objective", member.transform)


def rows_of(case: Case, folder: Path) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Yield (what makes arrays, objective, row) of some rows of each member, the first and the last among them."""
    for member in members_of(case, folder):
        for number in sorted({0, 1, len(member.rows) // 3, len(member.rows) // 2, len(member.rows) - 1}):
            if number < len(member.rows):
                yield member.transform, objective_of(member), member.rows[number]

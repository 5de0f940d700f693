"""What holds for the arrays of every objective, in every family that it allows.

Rows come from a store by way of `prepare`, batches from Grain, as in a run. What a prediction may see is tested in
test_objective_visibility.py, rates in test_objective_statistics.py.
"""

import itertools
import math

import numpy as np
import pytest
from cases import (
    CASES,
    CLS,
    CORPORA,
    END,
    PAD,
    SENTINELS,
    SEP,
    SPECIAL,
    START,
    WORDS,
    draws,
    generator,
    members_of,
    objective_of,
    pairs_row,
    random_row,
    row_of,
    rows_of,
)

from jaxformer.data.batches import train_batches
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.corruption import Corruption
from jaxformer.objectives.denoising import Denoising
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.parallel_text import ParallelText
from jaxformer.objectives.text_to_text import TextToText

BATCH = 4
# Arrays do not depend on the visibility.
FAMILIES = list({(case.label.split("-")[0], case.family): case for case in CASES}.values())


@pytest.fixture(params=FAMILIES, ids=lambda case: case.label)
def carried(request):
    """Every objective in every family."""
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpora")


def batches_of(members, steps, **keys):
    batches = train_batches(members, batch_size=BATCH, **({"seed": 5} | keys))
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Numbered:
    """A transform that also says which row of which member its arrays come from."""

    def __init__(self, member, transform):
        self.member, self.transform = member, transform

    def __call__(self, row, rng):
        return {**self.transform(row, rng), "row": np.array([self.member, row["number"]])}


# Reproducible: one function of the seed and the example's number.


def test_a_seed_and_a_number_give_one_example_and_each_visit_another(carried, folder):
    members = members_of(carried, folder)
    kinds = [objective_of(member) for member in members]
    members = [
        member._replace(transform=Numbered(n, member.transform), weight=float(len(member.rows)))
        for n, member in enumerate(members)
    ]
    steps = 1 + math.ceil(2 * sum(len(member.rows) for member in members) / BATCH)  # two epochs
    batches = batches_of(members, steps)
    assert_equal(batches_of(members, 3), batches[:3])
    visits = {}
    for batch in batches:
        for place in range(BATCH):
            example = {name: array[place] for name, array in batch.items()}
            visits.setdefault(tuple(example.pop("row").tolist()), []).append(example)
    assert {row for row, seen in visits.items() if len(seen) > 1} == {
        (n, row) for n, member in enumerate(members) for row in range(len(member.rows))
    }
    for n, kind in enumerate(kinds):
        changes = [
            any((seen[0][name] != seen[1][name]).any() for name in seen[0])
            for (member, _), seen in visits.items()
            if member == n
        ]
        assert any(changes) == draws(kind)
    other = batches_of(members, 3, seed=6)
    assert any((batches[0][name] != other[0][name]).any() for name in other[0])


def test_a_run_resumes_exactly_whatever_the_number_of_processes(carried, folder):
    members = members_of(carried, folder)
    unbroken = batches_of(members, 5)
    assert_equal(batches_of(members, 2, first_example=3 * BATCH), unbroken[3:])
    for processes in (2, 4):
        parts = [
            batches_of(members, 2, first_example=BATCH, rows=rows.tolist())
            for rows in np.split(np.arange(BATCH), processes)
        ]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_equal(joined, unbroken[1:3])


# What becomes of the text. Tests read ids from the arrays, no references.


def real(arrays, side=""):
    """The tokens that a stack reads, without padding."""
    return arrays[f"{side}inputs"][arrays[f"{side}segment_ids"] > 0]


def source_and_target(arrays):
    """The two texts of a text-to-text example, in two stacks or in one."""
    target = arrays["targets"][arrays["weights"] > 0]
    if "encoder_inputs" in arrays:
        return real(arrays, "encoder_"), target
    return arrays["inputs"][: arrays["prefix_length"]], target


def runs(ids):
    """Cut ids at sentinels, which are numbered in order; return the runs between them, without those that are empty."""
    there = ids[np.isin(ids, SENTINELS)]
    np.testing.assert_array_equal(there, SENTINELS[: len(there)])
    parts, part = [], []
    for token in ids.tolist():
        if token in SENTINELS:
            parts.append(part)
            part = []
        else:
            part.append(token)
    return [part for part in [*parts, part] if part]


def interleaved(first, second):
    together = itertools.chain.from_iterable(itertools.zip_longest(first, second, fillvalue=[]))
    return [token for run in together for token in run]


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(token in rest for token in part)


def rebuilt(arrays, objective):
    """Return the text that an example was made from."""
    if isinstance(objective, MaskedLM):
        ids, weights = real(arrays).copy(), arrays["weights"] > 0
        ids[arrays["predict_positions"][weights]] = arrays["targets"][weights]
        if objective.next_sentence:
            middle = np.flatnonzero(np.diff(arrays["token_types"][: len(ids)]))[0]
            assert (ids[0], ids[middle], ids[-1]) == (CLS, SEP, SEP)
            return [*ids[1:middle], *ids[middle + 1 : -1]]
        assert (ids[0], ids[-1]) == (CLS, SEP)
        return ids[1:-1].tolist()  # whether the text ended with the last separator or before it
    if isinstance(objective, CausalLM):
        ids = [*real(arrays), arrays["targets"][len(real(arrays)) - 1]]
        assert objective.family != "encoder_only" or ids[0] == CLS
        return ids[objective.family == "encoder_only" :]
    if isinstance(objective, ParallelText):
        sides = []
        for side, ids in (("encoder_", "encoder_inputs"), ("", "targets")):
            if objective.family == "decoder_only":
                sides.append([source_and_target(arrays)[side == ""]])
            else:
                segments = arrays[f"{side}segment_ids"]
                sides.append([arrays[ids][segments == number] for number in range(1, segments.max() + 1)])
        assert all(text[-1] == END for texts in sides for text in texts)
        return [token for pair in zip(*sides, strict=True) for text in pair for token in text[:-1]]
    source, target = source_and_target(arrays)
    if isinstance(objective, Denoising):
        assert (target[0], target[-1]) == (START, END)
        return target[1:-1].tolist()
    assert isinstance(objective, Corruption)
    if objective.delimited:
        assert source[-1] == target[-1] == END
        source, target = source[:-1], target[:-1]
    if objective.targets == "text":
        return target.tolist()
    if objective.noise == "suffix":
        return [*source, *target]
    assert (objective.inputs, objective.targets) == ("sentinels", "sentinels")
    noise_first = len(source) > 0 and source[0] in SENTINELS
    return interleaved(*((runs(target), runs(source)) if noise_first else (runs(source), runs(target))))


def loses_places(objective):
    """Whether tokens are left out where nothing marks it."""
    return objective.name in ("drop_tokens", "span_corruption") and objective.inputs == "drop"


def test_inputs_and_targets_rebuild_the_text(carried, folder):
    """Where tokens are dropped, their places are lost: each side keeps the order, and together they have all."""
    for number, (transform, objective, row) in enumerate(rows_of(carried, folder)):
        text = row["tokens"].tolist()
        for seed in range(5):
            arrays = transform(row, generator(10 * number + seed))
            if loses_places(objective):
                kept, dropped = (interleaved(runs(side[:-1]), []) for side in source_and_target(arrays))
                assert sorted(kept + dropped) == sorted(text)
                assert is_subsequence(kept, text) and is_subsequence(dropped, text)
            elif isinstance(objective, MaskedLM) and text[-1] == SEP:
                assert rebuilt(arrays, objective) == text[:-1]
            else:
                assert rebuilt(arrays, objective) == text


# Tokens around and between texts.

STRANGE = [SPECIAL[role] for role in ("separator", "classify", "start", "end", "unknown", "mask")]


def strange_row(objective, seed):
    """A row with special tokens among the others."""
    row, rng = random_row(objective, seed), generator(seed)
    places = rng.random(len(row["tokens"])) < 0.3
    return row | {"tokens": np.where(places, rng.choice(STRANGE, len(places)), row["tokens"]).astype(np.int32)}


def test_what_stands_around_texts_is_never_corrupted(carried):
    """[CLS] and [SEP], <s> and </s> stay where the objective puts them; masked_lm spares those in the text as well.

    T5's and BART's objectives corrupt a special token that is in the text like any other: their rows have none that
    stands between documents.
    """
    for transform, objective in carried.parts:
        for seed in range(60):
            row = strange_row(objective, seed)
            arrays, text = transform(row, generator(seed)), row["tokens"]
            ids = real(arrays)
            if isinstance(objective, MaskedLM):
                if objective.next_sentence:
                    clean = [CLS, *text[: row["boundary"]], SEP, *text[row["boundary"] :], SEP]
                else:  # one separator where the window ends with its document
                    clean = [CLS, *text] if text[-1] == SEP else [CLS, *text, SEP]
                clean = np.array(clean)
                special = objective.vocabulary.is_special[clean]
                np.testing.assert_array_equal(ids[special], clean[special])
                assert not objective.vocabulary.is_special[arrays["targets"][arrays["weights"] > 0]].any()
            elif isinstance(objective, CausalLM):
                first = [CLS] if carried.family == "encoder_only" else []
                np.testing.assert_array_equal([*ids, arrays["targets"][len(ids) - 1]], [*first, *text])
            elif isinstance(objective, TextToText) and objective.delimited:
                source, target = source_and_target(arrays)
                assert source[-1] == END
                cut = len(target) == objective.target_length
                assert cut or target[-1] == END
                if isinstance(objective, Denoising):
                    assert source[0] == target[0] == START


def puts_random(objective):
    """Whether the objective puts in tokens drawn from the whole vocabulary, padding included."""
    share = getattr(objective, "random_share", 0.0) > 0
    return share and isinstance(objective, (MaskedLM, Denoising))


def test_padding_is_padding(carried, folder):
    """Nothing that is filled up holds a token, counts, or belongs to a segment; and all that counts is no padding."""
    rows = list(rows_of(carried, folder))
    rows += [(t, o, random_row(o, length=length)) for t, o in carried.parts for length in (1, 2, 3, 6)]
    for seed, (transform, objective, row) in enumerate(rows):
        arrays, put = transform(row, generator(seed)), {END, CLS, SEP, START, *SENTINELS.tolist()}
        for side in ("", "encoder_") if "encoder_inputs" in arrays else ("",):
            segments = arrays[f"{side}segment_ids"]
            filled, ids = segments == 0, arrays[f"{side}inputs"]
            assert (np.diff(filled.astype(int)) >= 0).all()  # padding stands last
            assert (ids[filled] == PAD).all() and (arrays[f"{side}positions"][filled] == 0).all()
            ordinary = ~filled
            if carried.family == "encoder_decoder" and not side:
                ordinary &= np.diff(segments, prepend=0) == 0  # a decoder starts from the id of padding
            assert puts_random(objective) or (ids[ordinary] != PAD).all()
        counts = arrays["weights"] > 0
        assert set(np.unique(arrays["weights"])) <= {0, 1}
        assert set(arrays["targets"][counts].tolist()) <= put | set(row["tokens"].tolist())
        assert (arrays["targets"][counts] != PAD).all()
        places = arrays.get("predict_positions", np.arange(len(counts)))
        assert (arrays["segment_ids"][places[counts]] > 0).all()
        if "predict_positions" in arrays:
            assert (np.diff(counts.astype(int)) <= 0).all() and (arrays["targets"][~counts] == PAD).all()
            assert len(set(places[counts].tolist())) == counts.sum()
        else:
            assert not arrays["weights"][arrays["segment_ids"] == 0].any()


# Shapes.


def all_special(objective, length):
    row = random_row(objective, length=length)
    return row | {"tokens": generator().choice([*STRANGE, PAD, *SENTINELS], len(row["tokens"])).astype(np.int32)}


def test_shapes_are_fixed_whatever_the_text(carried):
    for transform, objective in carried.parts:
        pairs = objective.rows == "pairs"
        longest = 19 if pairs else objective.row_length
        rows = [random_row(objective, seed, length) for length in range(longest + 1) for seed in range(2)]
        rows += [all_special(objective, length) for length in (1, 2, 5, longest)]
        if pairs:
            rows += [pairs_row(([10], [11]), ([12], [13])), pairs_row(([10] * 4, [11]), ([10], [11] * 4))]
        else:
            each = np.arange(1, longest + 1)  # documents of one token
            rows += [row_of(WORDS[:longest], segments=each), row_of(WORDS[:longest], sentence_starts=each > 0)]
            rows += [row_of(WORDS[: longest - 3], boundary=boundary) for boundary in (0, 1, longest - 3)]
        for seed, row in enumerate(rows):
            arrays = transform(row, generator(seed))
            found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
            assert found == carried.objective.shapes
            for side in ("", "encoder_") if "encoder_inputs" in arrays else ("",):
                places, segments = arrays[f"{side}positions"], arrays[f"{side}segment_ids"]
                assert 0 <= places.min() and places.max() < len(places)
                for segment in np.unique(segments[segments > 0]):
                    np.testing.assert_array_equal(places[segments == segment], np.arange((segments == segment).sum()))


def test_corpora_have_what_makes_the_tests_worth_it():
    lengths = [sum(map(len, document)) for corpus in CORPORA for document in corpus]
    assert min(lengths) == 1 and max(lengths) > 24

"""Token classification: schemes of tags, the first token of each word, and tags read back out of logits."""

import numpy as np
import pytest
from labelled import byte_bpe, example_of, gpt_bpe, wordpiece

from jaxformer.data import unlabelled
from jaxformer.data.sources import JSONLines
from jaxformer.errors import UserError
from jaxformer.tasks.schemes import Entity, entities_of, scheme_of, to_bio, with_beginnings
from jaxformer.tasks.tagging import TokenClassification, first_tokens, text_and_words

WORDS = ["Anna", "Berg", "lives", "in", "New", "York", "."]
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TAGS = [1, 2, 0, 0, 3, 4, 0]
RNG = np.random.default_rng(0)


def task_of(tokenizer, labels=BIO, family="encoder_only", **keys):
    model = type("Model", (), {"family": family, "visibility": "full", "token_types": 2})
    vocabulary = tokenizer.vocabulary.starting("end") if family == "encoder_decoder" else tokenizer.vocabulary
    keys = {"sequence_length": 12} | keys
    return TokenClassification(**keys).for_model(model).bind(vocabulary, labels, tokenizer.encode, tokenizer.decode)


def read(task, rows, tags):
    """Answers from logits that say for each row's places what `tags` has: {(row, place): tag's number}."""
    logits = np.zeros((len(rows), task.sequence_length, len(task.labels)), np.float32)
    for (row, place), tag in tags.items():
        logits[row, place, tag] = np.log(4)
    return task.answers(rows, task.read({"label": logits}, rows))


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (BIO, "BIO"),
        (("B-PER", "I-PER"), "BIO"),
        (("O", "B-PER"), "BIO"),
        (("O", "I-PER", "I-LOC", "B-LOC"), "IOB1"),
        (("O", "I-PER"), "IOB1"),
        (("O", "B-X", "I-X", "E-X", "S-X"), "BIOES"),
        (("O", "S-X"), "BIOES"),
        (("O", "B-X", "I-X", "L-X", "U-X"), "BIOES"),
        (("DET", "NOUN", "O"), ""),
        (("B-PER", "O", "other"), ""),
        (("O",), ""),
        (("B-creative-work", "I-creative-work", "O"), "BIO"),
    ],
)
def test_a_scheme_is_read_from_the_tags(labels, scheme):
    assert scheme_of(labels) == scheme


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-P I-P O O B-L I-L O", [("P", 0, 2), ("L", 4, 6)]),
        ("B-P B-P I-L I-P", [("P", 0, 1), ("P", 1, 2), ("L", 2, 3), ("P", 3, 4)]),
        ("I-P I-P B-P O I-P", [("P", 0, 2), ("P", 2, 3), ("P", 4, 5)]),  # IOB1
        ("S-P B-P I-P E-P I-P S-L", [("P", 0, 1), ("P", 1, 4), ("P", 4, 5), ("L", 5, 6)]),  # BIOES
        ("U-P B-P L-P E-P", [("P", 0, 1), ("P", 1, 3), ("P", 3, 4)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("NOUN O DET", []),
        ("", []),
    ],
)
def test_entities_of_tags(tags, expected):
    assert entities_of(tags.split()) == [Entity(*one) for one in expected]


def test_entities_are_those_of_seqeval():
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    rng = np.random.default_rng(3)
    for labels in (BIO, ("O", "I-P", "B-P", "I-L", "B-L"), ("O", "B-P", "I-P", "E-P", "S-P", "S-L", "E-L")):
        for _ in range(300):
            tags = list(rng.choice(labels, rng.integers(1, 9)))
            theirs = [(type_, first, last + 1) for type_, first, last in sequence_labeling.get_entities(tags)]
            assert entities_of(tags) == theirs


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-P I-P O I-L B-L I-L", "B-P I-P O B-L B-L I-L"),
        ("I-P I-L", "B-P B-L"),
        ("B-P I-P O B-P B-L I-L", "B-P I-P O B-P B-L I-L"),
        ("O O", "O O"),
    ],
)
def test_iob1_becomes_bio(tags, expected):
    assert to_bio(tags.split()) == expected.split()
    assert to_bio(expected.split()) == expected.split()


def test_beginnings_join_the_labels_of_iob1():
    assert with_beginnings(("I-P", "O", "I-L", "B-L")) == ("I-P", "O", "I-L", "B-L", "B-P")


def test_a_row_by_hand():
    """Berg is known; Bergen comes apart, and its first piece alone counts."""
    words = ["Anna", "Bergen", "lives", "in", "Y"]
    arrays = task_of(wordpiece())(example_of(wordpiece(), [1, 2, 0, 0, 3], text=words), RNG)
    pieces = wordpiece().tokens(wordpiece().encode("Bergen"))
    assert len(pieces) > 1
    inner = len(pieces) - 1
    assert wordpiece().tokens(arrays["inputs"][: 7 + inner]) == ["[CLS]", "Anna", *pieces, "lives", "in", "Y", "[SEP]"]
    rest = 12 - 7 - inner
    np.testing.assert_array_equal(arrays["label_targets"], [0, 1, 2, *[0] * inner, 0, 0, 3, 0, *[0] * rest])
    np.testing.assert_array_equal(arrays["label_weights"], [0, 1, 1, *[0] * inner, 1, 1, 1, 0, *[0] * rest])
    assert not arrays["token_types"].any() and arrays["segment_ids"].sum() == 7 + inner


def test_a_row_of_encoder_and_decoder_by_hand():
    """Byte-level BPE: tokens with the space before them, characters of several bytes; the decoder one place later."""
    tokenizer = byte_bpe()
    words = ["Émile", "🙂", "Zürich"]
    task = task_of(tokenizer, family="encoder_decoder")
    arrays = task(example_of(tokenizer, [1, 0, 3], text=words), RNG)
    sizes = [len(tokenizer.encode(word)) for word in ("Émile", " 🙂", " Zürich")]
    places = np.cumsum([1, *sizes[:2]])
    assert sizes[1] > 1 and np.flatnonzero(arrays["label_weights"]).tolist() == places.tolist()
    assert arrays["label_targets"][places].tolist() == [1, 0, 3]
    assert tokenizer.tokens(arrays["inputs"][:2]) == ["</s>", "<s>"]
    assert tokenizer.tokens(arrays["encoder_inputs"][:1]) == ["<s>"]


def test_a_row_of_a_decoder_by_hand():
    """Without GPT's tokens it is the text alone."""
    words = ["Anna", "lives", "in", "Zürich"]
    for tokenizer, before in ((byte_bpe(), 0), (gpt_bpe(), 1)):
        arrays = task_of(tokenizer, family="decoder_only")(example_of(tokenizer, [1, 0, 0, 3], text=words), RNG)
        assert tokenizer.decode(arrays["inputs"][: int(arrays["segment_ids"].sum())]).strip() == " ".join(words)
        sizes = [len(tokenizer.encode(word)) for word in ("Anna", " lives", " in")]
        places = np.cumsum([before, *sizes])
        assert np.flatnonzero(arrays["label_weights"]).tolist() == places.tolist()
        assert arrays["label_targets"][places].tolist() == [1, 0, 0, 3]


@pytest.mark.parametrize("family", ["encoder_only", "encoder_decoder"])
def test_shapes_never_change(family):
    tokenizer = wordpiece() if family == "encoder_only" else byte_bpe()
    task = task_of(tokenizer, family=family)
    for words in ([], ["Anna"], WORDS * 4):
        for label in (None, [0] * len(words)):
            arrays = task(example_of(tokenizer, label, text=words), RNG)
            assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes
            expected = {0: 0, 1: 1, 28: 10 if family == "encoder_only" else 8}[len(words)]  # in bytes, Anna is two
            assert arrays["label_weights"].sum() == (expected if label else 0)


def test_offsets_may_hold_white_space_before_a_word():
    """GPT-2's kind has the space in the token's characters, BART's not, SentencePiece a token of its own for it."""
    text, words = text_and_words(["New", "York", "🙂"])
    assert words.tolist() == [[0, 3], [4, 8], [9, 10]]
    for offsets in (
        [(0, 3), (3, 6), (6, 8), (8, 10), (8, 10), (8, 10)],
        [(0, 3), (4, 6), (6, 8), (9, 10), (9, 10), (9, 10)],
        [(0, 3), (3, 6), (6, 8), (9, 10), (10, 10), (10, 10)],
    ):
        assert first_tokens(text, words, np.array(offsets)).tolist() == [0, 1, 3]
    assert first_tokens(text, words, np.array([(0, 1), (1, 3), (3, 4), (4, 8), (8, 9), (9, 10)])).tolist() == [0, 3, 5]
    assert first_tokens(text, words, np.zeros((0, 2), int)).tolist() == [-1, -1, -1]
    assert first_tokens(*text_and_words(["", "a"]), np.array([(1, 2)])).tolist() == [-1, 0]


def test_words_of_running_text():
    text, words = text_and_words('  Anna (Berg) lives in "Zürich", U.S. … It is\tAnna\'s ... ')
    assert [text[first:end] for first, end in words] == [
        "Anna", "(", "Berg", ")", "lives", "in", '"', "Zürich", '"', ",", "U.S", ".", "…", "It", "is", "Anna's", "..."
    ]  # fmt: skip
    assert text_and_words("")[1].shape == (0, 2)


def test_iob1_is_learnt_as_bio():
    names = ("I-LOC", "I-PER", "O")
    labels = TokenClassification().learnt(names)
    assert labels == (*names, "B-LOC", "B-PER") == TokenClassification().learnt(labels)
    assert TokenClassification().learnt(BIO) == BIO
    task = task_of(wordpiece(), labels=labels)
    assert task.heads["label"].size == 5
    row = example_of(wordpiece(), [1, 1, 2, 2, 0, 0, 2], text=WORDS)
    assert task(row, RNG)["label_targets"][1:8].tolist() == [4, 1, 2, 2, 3, 0, 2]
    assert task.truths([row]) == [["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]]


def test_other_tags_are_learnt_as_they_are():
    """Also IOB1, where an imported model has no beginnings to tell."""
    for labels in (("O", "B-P", "E-P", "S-P", "I-P"), ("DET", "NOUN", "VERB"), ("O", "I-PER", "I-LOC")):
        row = example_of(wordpiece(), [1, 2, 0], text=["New", "York", "."])
        task = task_of(wordpiece(), labels=labels)
        assert task(row, RNG)["label_targets"][1:4].tolist() == [1, 2, 0]
        assert task.truths([row]) == [[labels[1], labels[2], labels[0]]]


def test_tags_that_spell_no_entities_have_no_entity_metrics():
    labels = ("DET", "NOUN", "VERB")
    assert task_of(wordpiece(), labels=labels).metrics == ("tag_accuracy",)
    assert task_of(wordpiece(), labels=labels, metrics=("tag_accuracy",)).metrics == ("tag_accuracy",)
    assert task_of(wordpiece()).metrics[0] == "seqeval_f1"
    with pytest.raises(UserError, match="task.metrics: the tag 'DET' spells no entity"):
        task_of(wordpiece(), labels=labels, metrics=("seqeval_f1",))


def test_tags_that_do_not_match_the_words_are_refused():
    for tags in ([1, 2], [0] * 8, []):
        with pytest.raises(UserError, match=f"{len(tags)} tags for the 7 words of .*'q1'") as error:
            task_of(wordpiece())(example_of(wordpiece(), tags, text=WORDS), RNG)
        assert "\n" not in str(error.value)


def test_answers_have_words_tags_and_entities():
    task = task_of(wordpiece())
    row = example_of(wordpiece(), TAGS, text=WORDS)
    (answer,) = read(task, [row], {(0, place + 1): tag for place, tag in enumerate(TAGS)})
    assert answer["tags"][5].pop("probability") == pytest.approx(0.5)  # e^log 4 of 4 + 4
    assert answer["tags"][5] == {"word": "York", "start": 23, "end": 27, "tag": "I-LOC"}
    assert answer["entities"] == [
        {"type": "PER", "text": "Anna Berg", "start": 0, "end": 9},
        {"type": "LOC", "text": "New York", "start": 19, "end": 27},
    ]
    assert answer["unseen"] == 0
    assert task.guesses([answer]) == task.truths([row]) == [[BIO[tag] for tag in TAGS]]


def test_classes_weigh_what_the_config_says():
    task = task_of(wordpiece(), class_weights=(0.5, 2.0, 3.0, 4.0, 5.0), label_smoothing=0.1)
    arrays = task(example_of(wordpiece(), TAGS, text=WORDS), RNG)
    assert arrays["label_weights"].tolist() == [0, 2, 3, 0.5, 0.5, 4, 5, 0.5, 0, 0, 0, 0]
    assert task.heads["label"].label_smoothing == 0.1
    with pytest.raises(UserError, match="task.class_weights: 2 weights, but there are 5 labels: O, B-PER"):
        task_of(wordpiece(), class_weights=(1.0, 2.0))


def test_words_without_a_token_are_outside():
    """Cut off at the end, or left out by the tokenizer: counted, and no weight."""
    words = ["Anna", "\u0007", "Berg", "lives", "in", "New", "York"]
    task = task_of(wordpiece(), sequence_length=8)  # room for 6 of the tokens: "York" is the sixth
    row = example_of(wordpiece(), [1, 0, 2, 0, 0, 3, 4], text=words)
    arrays = task(row, RNG)
    assert arrays["label_weights"].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    assert wordpiece().tokens(arrays["inputs"][[0, -1]]) == ["[CLS]", "[SEP]"]
    shorter = task_of(wordpiece(), sequence_length=8)
    longer = example_of(wordpiece(), None, text=[*words, "New", "York"])
    every = {(row, place): 3 for row in (0, 1) for place in range(8)}
    assert wordpiece().tokens(shorter(longer, RNG)["inputs"][-1:]) == ["[SEP]"]
    first, second = read(shorter, [row, longer], every)
    assert (first["unseen"], second["unseen"]) == (1, 3)
    assert [word["tag"] for word in second["tags"]] == ["B-LOC", "O", *["B-LOC"] * 5, "O", "O"]
    assert second["tags"][1]["probability"] is second["tags"][8]["probability"] is None
    assert second["tags"][8] == {"word": "York", "start": 34, "end": 38, "tag": "O", "probability": None}


def test_running_text_keeps_its_characters():
    row = example_of(wordpiece(), None, text="Anna  Berg, York.")
    (answer,) = read(task_of(wordpiece()), [row], {(0, 1): 1, (0, 2): 2, (0, 4): 3})
    assert [word["word"] for word in answer["tags"]] == ["Anna", "Berg", ",", "York", "."]
    assert answer["entities"] == [
        {"type": "PER", "text": "Anna  Berg", "start": 0, "end": 10},
        {"type": "LOC", "text": "York", "start": 12, "end": 16},
    ]


def test_one_field_is_tagged():
    with pytest.raises(UserError, match="task.text_fields: 2 fields"):
        TokenClassification(text_fields=("a", "b"))


def test_running_text_to_tag_is_read_as_it_stands():
    """What `predict` gives of a row: its characters, which answers point at, or the words where it holds words."""
    source = JSONLines(path="rows.jsonl")
    text = unlabelled({"text": "Anna  Berg, York.", "id": 3}, ("text",), "tags", source, "input 0")
    assert text["text"] == text["record"]["text"] == "Anna  Berg, York." and text["record"]["id"] == 3
    words = unlabelled({"text": WORDS}, ("text",), "tags", source, "input 1")
    assert (words["text"], words["record"]["text"]) == ("Anna Berg lives in New York .", WORDS)

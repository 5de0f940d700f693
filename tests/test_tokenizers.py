"""Tokenizers: round trips, special tokens by role, word starts, equal trainings, files, refusals."""

import copy
import dataclasses
import pickle
import threading
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.errors import UserError
from jaxformer.tokenizers import (
    ROLES,
    TOKENIZERS,
    ByteBPE,
    Tokenizer,
    Unigram,
    WordPiece,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on.",
    "## A heading ##\nPack my box with five dozen liquor jugs: 0123456789.",
    "Training tokenizers, training tokens: unhappiness, happiness, tokenization.",
] * 4
SETTINGS: dict[str, Any] = {
    "byte_bpe": ByteBPE(vocab_size=320),
    "bart": ByteBPE(vocab_size=320, special="bart"),
    "wordpiece": WordPiece(vocab_size=160),
    "unigram": Unigram(vocab_size=120, num_sentinels=10),
}
TRAINED = {name: train_tokenizer(config, TEXTS) for name, config in SETTINGS.items()}


@pytest.fixture(params=sorted(TRAINED))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TRAINED[request.param]


def one_line(caught: "pytest.ExceptionInfo[UserError]") -> bool:
    return len(str(caught.value).splitlines()) == 1


def spelled(tokenizer: Tokenizer) -> list[str]:
    return tokenizer.tokens(range(tokenizer.vocab_size))


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    return tokenizer.tokens(np.flatnonzero(tokenizer.vocabulary.is_special))


def test_every_kind_that_trains_is_tested() -> None:
    assert {type(config) for config in SETTINGS.values()} == {
        kind for kind in TOKENIZERS.values() if "vocab_size" in kind.__dataclass_fields__
    }


@pytest.mark.parametrize("name", ["byte_bpe", "bart"])
@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_byte_bpe_gives_back_any_text(name: str, text: str) -> None:
    tokenizer = TRAINED[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text("abcdefghijklmnopqrstuvwxyz .,\n\t", max_size=60))
@settings(max_examples=100, deadline=None)
def test_unigram_gives_back_text_of_known_characters(text: str) -> None:
    tokenizer = TRAINED["unigram"]
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_unigram_reads_compatible_characters_as_their_normal_form() -> None:
    tokenizer = TRAINED["unigram"]
    text = "ﬁve ｄｏｇ"
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text) == "five dog"


def test_wordpiece_gives_back_words_without_case_and_accents() -> None:
    stripped = train_tokenizer(WordPiece(vocab_size=160, strip_accents=True), TEXTS)
    assert stripped.decode(stripped.encode("The QUICK  fóx jumps")) == "the quick fox jumps"
    kept = train_tokenizer(WordPiece(vocab_size=160), [*TEXTS, "naïve café, Über Ä"])
    assert kept.decode(kept.encode("Naïve CAFÉ über ä")) == "naïve café über ä"


def test_cased_wordpiece_tells_cases_apart() -> None:
    cased = train_tokenizer(WordPiece(vocab_size=160, lowercase=False), TEXTS)
    assert cased.decode(cased.encode("The fox Pack")) == "The fox Pack"


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_an_unseen_character_is_unknown(name: str) -> None:
    tokenizer = TRAINED[name]
    assert tokenizer.vocabulary.id("unknown") in tokenizer.encode("the 語 dog")


def test_wordpiece_splits_at_the_longest_piece_it_knows() -> None:
    tokenizer = TRAINED["wordpiece"]
    pieces = tokenizer.tokens(tokenizer.encode("jumpsquick"))
    vocabulary = tokenizer.backend.get_vocab()
    rest, expected = "jumpsquick", []
    while rest:
        mark = "##" if expected else ""
        piece = next(rest[:n] for n in range(len(rest), 0, -1) if mark + rest[:n] in vocabulary)
        expected.append(mark + piece)
        rest = rest[len(piece) :]
    assert pieces == expected and len(pieces) > 1


SPELLED = "fox [MASK]</s> x <|endoftext|> <extra_id_0> the <mask> <s> [SEP] <unk> [UNK]<pad>"
WITH_THEM = {name: train_tokenizer(config, [*TEXTS, SPELLED] * 2) for name, config in SETTINGS.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_special_tokens_in_text_are_text(name: str, tmp_path: Path) -> None:
    """Also in copies, in other processes, read from the disk, and in what stores call."""
    WITH_THEM[name].save(tmp_path / "tokenizer.json")
    for tokenizer in (
        WITH_THEM[name], pickle.loads(pickle.dumps(WITH_THEM[name])), copy.deepcopy(WITH_THEM[name]),
        load_tokenizer(tmp_path / "tokenizer.json"),
    ):  # fmt: skip
        ids, vocabulary = tokenizer.encode(SPELLED), tokenizer.vocabulary
        assert not vocabulary.is_special[ids[ids != vocabulary.special.get("unknown")]].any()
        text = tokenizer.decode(ids)
        assert text == SPELLED or name in ("wordpiece", "unigram")
        assert "".join(text.split()) == "".join(SPELLED.split()).lower() or name != "wordpiece"
        assert [encoding.ids for encoding in tokenizer.encode_batch([SPELLED])] == [ids.tolist()]
        framed = tokenizer.encode(SPELLED, special=True)
        assert vocabulary.is_special[framed].sum() - vocabulary.is_special[ids].sum() == len(framed) - len(ids)


@pytest.mark.parametrize(
    ("name", "all_of", "mask"),
    [
        ("byte_bpe", ["<|endoftext|>"], []),
        ("bart", ["</s>", "<mask>", "<s>", "<unk>", "<pad>"], ["<mask>"]),
        ("wordpiece", ["[MASK]", "[SEP]", "[UNK]"], ["[MASK]"]),
        ("unigram", ["</s>", "<extra_id_0>", "<unk>", "<pad>"], []),
    ],
)
def test_special_tokens_in_text_are_read_where_asked(name: str, all_of: list[str], mask: list[str]) -> None:
    tokenizer = WITH_THEM[name]
    for reads, expected in (("all", all_of), ("mask", mask)):
        ids = tokenizer.encode(SPELLED, reads=reads)
        assert tokenizer.tokens(ids[tokenizer.vocabulary.is_special[ids]]) == expected


def test_a_mask_in_brackets_is_three_words() -> None:
    tokenizer = WITH_THEM["wordpiece"]
    assert tokenizer.decode(tokenizer.encode("fox [MASK]")) == "fox [ mask ]"


def test_whole_words_that_are_special_tokens_are_hidden() -> None:
    """Of a tokenizer from elsewhere, whose words end at white space and whose tokens are not marked as special."""
    backend = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "[MASK]": 1, "the": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    backend.add_tokens(["[MASK]", "[UNK]"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("the [MASK] the").tolist() == [2, 0, 2]
    assert tokenizer.encode("the [MASK] the", reads="mask").tolist() == [2, 1, 2]


def test_padding_and_ids_without_a_token_are_not_writable() -> None:
    assert np.flatnonzero(~TRAINED["wordpiece"].writable).tolist() == [TRAINED["wordpiece"].vocabulary.id("pad")]
    assert TRAINED["byte_bpe"].writable.all()  # its padding is the end of a text
    assert np.flatnonzero(by_hand(a=2).writable).tolist() == [0, 2]


CHINESE = [chr(0x4E00 + number) for number in range(1500)]


def test_wordpiece_keeps_as_many_characters_as_fit() -> None:
    texts = ["".join(CHINESE[: 2 + number]) for number in range(0, 1500, 10)]
    whole = train_tokenizer(WordPiece(vocab_size=1600), texts)
    assert not (whole.encode(" ".join(texts)) == whole.vocabulary.id("unknown")).any()
    small = [train_tokenizer(WordPiece(vocab_size=1205), texts) for _ in range(2)]
    assert small[0].vocab_size == 1205 and small[0].fingerprint == small[1].fingerprint
    unknown = small[0].vocabulary.id("unknown")
    # The first characters are the most frequent.
    assert (small[0].encode("".join(CHINESE[:1200])) != unknown).all()
    assert (small[0].encode("".join(CHINESE[1200:1492])) == unknown).all()


def test_continuing_letters_count_among_what_must_fit() -> None:
    words = ["".join(chr(0x0430 + (n * k) % 32) for k in range(1, 6)) for n in range(1, 200)]
    rare = ["".join(chr(0x10D0 + k) for k in range(30))]
    tokenizer = train_tokenizer(WordPiece(vocab_size=80), [" ".join(words * 5 + rare)])
    assert tokenizer.vocab_size <= 80
    assert tokenizer.vocabulary.id("unknown") not in tokenizer.encode(" ".join(words))
    assert tokenizer.encode(rare[0]).tolist() == [tokenizer.vocabulary.id("unknown")]


def test_encoding_adds_no_special_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lazy dog")
    assert ids.dtype == np.int32 and len(ids)
    assert not tokenizer.vocabulary.is_special[ids].any()
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize(
    ("name", "single", "pair"),
    [
        ("byte_bpe", "{a}", "{a} {b}"),
        ("bart", "<s> {a} </s>", "<s> {a} </s> </s> {b} </s>"),
        ("wordpiece", "[CLS] {a} [SEP]", "[CLS] {a} [SEP] {b} [SEP]"),
        ("unigram", "{a} </s>", "{a} </s> {b} </s>"),
    ],
)
def test_special_tokens_stand_where_the_kind_has_them(name: str, single: str, pair: str, tmp_path: Path) -> None:
    TRAINED[name].save(tmp_path / "tokenizer.json")
    for tokenizer in (TRAINED[name], load_tokenizer(tmp_path / "tokenizer.json")):
        a, b = (" ".join(tokenizer.tokens(tokenizer.encode(text))) for text in ("lazy dog", "quick fox"))
        assert tokenizer.tokens(tokenizer.encode("lazy dog", special=True)) == single.format(a=a).split()
        both = tokenizer.backend.encode("lazy dog", "quick fox")
        assert both.tokens == pair.format(a=a, b=b).split()
        if name == "wordpiece":
            assert both.type_ids == [0] * (len(a.split()) + 2) + [1] * (len(b.split()) + 1)


def test_a_tokenizer_without_any_end_pads_with_its_first_token() -> None:
    assert by_hand(a=1).vocabulary.special == {"pad": 0, "unknown": 0}


def test_no_id_reaches_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    ids = tokenizer.backend.get_vocab().values()
    assert sorted(ids) == list(range(tokenizer.vocab_size))
    assert vocabulary.size == len(vocabulary.is_special) == len(vocabulary.word_starts) == tokenizer.vocab_size


@pytest.mark.parametrize(("name", "config"), SETTINGS.items())
def test_training_keeps_to_the_vocabulary_size(name: str, config: Any) -> None:
    assert TRAINED[name].vocab_size <= config.vocab_size
    assert TRAINED["byte_bpe"].vocab_size == TRAINED["bart"].vocab_size == 320


def test_each_role_is_the_token_of_that_spelling(tokenizer: Tokenizer) -> None:
    vocabulary, tokens = tokenizer.vocabulary, spelled(tokenizer)
    for role, number in vocabulary.special.items():
        assert tokens[number] in ROLES[role] or (role, tokens[number]) == ("pad", "<|endoftext|>")
        assert vocabulary.is_special[number]


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("byte_bpe", {"pad", "end", "start", "delimiter", "extract"}),
        ("bart", {"start", "pad", "end", "unknown", "mask"}),
        ("wordpiece", {"pad", "unknown", "classify", "separator", "mask"}),
        ("unigram", {"pad", "end", "unknown"}),
    ],
)
def test_each_kind_has_the_roles_of_its_family(name: str, roles: set[str]) -> None:
    assert set(TRAINED[name].vocabulary.special) == roles


def test_the_ids_of_t5_come_first() -> None:
    assert spelled(TRAINED["unigram"])[:3] == ["<pad>", "</s>", "<unk>"]


def test_the_ids_of_bart_come_first_and_its_mask_last() -> None:
    tokenizer = TRAINED["bart"]
    vocabulary = tokenizer.vocabulary
    assert tokenizer.vocab_size == 320
    assert [vocabulary.id(role) for role in ("start", "pad", "end", "unknown", "mask")] == [0, 1, 2, 3, 319]
    assert special_tokens(tokenizer) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # The mask stands for a word with the space before it.
    masked = tokenizer.encode("the <mask> dog", reads="mask")
    assert tokenizer.tokens(masked)[-2:] == ["<mask>", "Ġdog"] and tokenizer.decode(masked[:-2]) == "the"


def test_special_tokens_are_those_and_no_others(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    expected = {*vocabulary.special.values(), *vocabulary.sentinels.tolist()}
    assert set(np.flatnonzero(vocabulary.is_special).tolist()) == expected


def test_decoding_leaves_special_tokens_out_unless_asked(tokenizer: Tokenizer) -> None:
    number = next(iter(tokenizer.vocabulary.special.values()))
    ids = [number, *tokenizer.encode("the dog")]
    assert tokenizer.decode(ids).strip() == "the dog"
    assert tokenizer.tokens([number])[0] in tokenizer.decode(ids, skip_special=False)


def test_a_missing_role_is_refused_with_its_spellings() -> None:
    with pytest.raises(UserError, match=r"no 'mask' token \(\[MASK\] or <mask>\)") as caught:
        TRAINED["byte_bpe"].vocabulary.id("mask")
    assert one_line(caught)


def test_sentinels_are_the_last_ids_descending() -> None:
    tokenizer = TRAINED["unigram"]
    sentinels = tokenizer.vocabulary.sentinels
    np.testing.assert_array_equal(sentinels, np.arange(tokenizer.vocab_size - 1, tokenizer.vocab_size - 11, -1))
    assert tokenizer.tokens(sentinels) == [f"<extra_id_{number}>" for number in range(10)]
    assert not len(TRAINED["wordpiece"].vocabulary.sentinels)


def test_word_starts_by_spelling(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    for number, token in enumerate(spelled(tokenizer)):
        begins = not token.startswith("##") if "[CLS]" in spelled(tokenizer) else token[0] in "Ġ▁"
        assert vocabulary.word_starts[number] == (begins or vocabulary.is_special[number]), token


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_as_many_words_start_as_there_are(name: str) -> None:
    tokenizer = TRAINED[name]
    ids = tokenizer.encode("training tokenization unhappiness")
    assert len(ids) > 3
    assert tokenizer.vocabulary.word_starts[ids].sum() == 3


def test_a_byte_bpe_token_of_two_hashes_makes_no_wordpiece() -> None:
    tokenizer = TRAINED["byte_bpe"]
    (hashes,) = [number for number, token in enumerate(spelled(tokenizer)) if token == "##"]
    assert not tokenizer.vocabulary.word_starts[hashes]
    assert not tokenizer.vocabulary.word_starts[tokenizer.encode("e")].any()
    assert tokenizer.vocabulary.word_starts[tokenizer.encode(" the")[0]]


@pytest.mark.parametrize("name", TRAINED)
def test_training_twice_gives_the_same_tokenizer(name: str) -> None:
    texts = [*TEXTS, "rare: à ß π ¶ &"]
    first, *more = (train_tokenizer(SETTINGS[name], iter(texts)).fingerprint for _ in range(5))
    assert more == [first] * 4


def test_byte_bpe_and_unigram_can_ignore_case() -> None:
    for name in ("byte_bpe", "unigram"):
        assert "T" in spelled(TRAINED[name])
        uncased = train_tokenizer(dataclasses.replace(SETTINGS[name], lowercase=True), TEXTS)
        assert uncased.decode(uncased.encode("The Dog")) == "the dog"


def test_the_fingerprint_follows_text_and_settings() -> None:
    changed = [
        train_tokenizer(WordPiece(vocab_size=120), TEXTS),
        train_tokenizer(WordPiece(vocab_size=160, lowercase=False), TEXTS),
        train_tokenizer(WordPiece(vocab_size=160), [*TEXTS, "zymurgy! " * 20]),
        TRAINED["wordpiece"],
    ]
    assert len({tokenizer.fingerprint for tokenizer in changed}) == 4


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(TEXTS[1]), tokenizer.encode(TEXTS[1]))
    np.testing.assert_array_equal(loaded.vocabulary.word_starts, tokenizer.vocabulary.word_starts)
    assert loaded.vocabulary.special == tokenizer.vocabulary.special
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_several_may_save_to_one_place_at_once(tmp_path: Path) -> None:
    path, failures = tmp_path / "tokenizer.json", []

    def save() -> None:
        try:
            for _ in range(20):
                TRAINED["wordpiece"].save(path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert load_tokenizer(path).fingerprint == TRAINED["wordpiece"].fingerprint


def test_a_vocabulary_travels_to_other_processes(tokenizer: Tokenizer) -> None:
    copied = pickle.loads(pickle.dumps(tokenizer.vocabulary))
    np.testing.assert_array_equal(copied.is_special, tokenizer.vocabulary.is_special)
    assert copied.special == tokenizer.vocabulary.special


def test_a_saved_tokenizer_that_cuts_and_pads_does_neither_here(tmp_path: Path) -> None:
    backend = hf.Tokenizer.from_str(TRAINED["wordpiece"].backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(loaded.encode(TEXTS[0]), TRAINED["wordpiece"].encode(TEXTS[0]))
    assert len(loaded.backend.encode_batch(["the", TEXTS[0]], add_special_tokens=False)[0].ids) == 1
    assert loaded.fingerprint == TRAINED["wordpiece"].fingerprint


def by_hand(**ids: int) -> Tokenizer:
    return Tokenizer(hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0} | ids, unk_token="[UNK]")))


def test_a_vocabulary_may_leave_ids_out() -> None:
    tokenizer = by_hand(**{"a": 2, "##b": 7})
    assert tokenizer.vocab_size == tokenizer.vocabulary.size == 8
    assert np.flatnonzero(tokenizer.vocabulary.word_starts).tolist() == [0, 2]
    assert tokenizer.encode("ab").tolist() == [2, 7]


def test_the_first_of_several_spellings_of_a_role_is_taken() -> None:
    both = by_hand(**{"<|endoftext|>": 1, "</s>": 2, "<pad>": 3, "[PAD]": 4})
    assert both.vocabulary.special == {"pad": 4, "unknown": 0, "end": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no tokenizer file"),
        (b"", "damaged"),
        (b"{}", "damaged"),
        (b"\xff\xfe", "not text"),
        (TRAINED["wordpiece"].backend.to_str().encode()[:-40], "damaged"),
    ],
    ids=["missing", "empty", "another JSON", "bytes", "truncated"],
)
def test_a_missing_or_damaged_file_is_refused_in_one_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and one_line(caught)


def test_a_folder_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        ByteBPE(vocab_size=260),
        ByteBPE(vocab_size=261, special="bart"),
        WordPiece(vocab_size=5),
        WordPiece(vocab_size=30),
        Unigram(vocab_size=103),
        Unigram(vocab_size=110),
        Unigram(vocab_size=0, num_sentinels=0),
    ],
    ids=repr,
)
def test_a_vocabulary_too_small_for_its_base_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match=f"tokenizer.vocab_size: {config.vocab_size} ") as caught:
        train_tokenizer(config, TEXTS)
    assert one_line(caught)


def test_special_tokens_of_no_known_kind_are_refused() -> None:
    with pytest.raises(
        UserError, match="tokenizer.special: 'brt' is not one of gpt, bart; did you mean 'bart'"
    ) as caught:
        ByteBPE(special="brt")
    assert one_line(caught)


def test_a_negative_number_of_sentinels_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer.num_sentinels: -1"):
        train_tokenizer(Unigram(num_sentinels=-1), TEXTS)


@pytest.mark.parametrize("texts", [[], ["", ""]], ids=["no texts", "empty texts"])
@pytest.mark.parametrize("kind", [ByteBPE, WordPiece, Unigram])
def test_training_on_no_text_is_refused(kind: type, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to train on") as caught:
        train_tokenizer(kind(), texts)
    assert one_line(caught)

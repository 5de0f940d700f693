"""Where sentences begin, in many scripts and at line ends, and what is said of corpora whose sentences tell nothing."""

import json
from pathlib import Path

import pytest

from jaxformer.data import corpus_tokenizer, doubts, prepare, training_texts
from jaxformer.data.files import JSONLines, Text
from jaxformer.data.sentences import line_starts, sentence_starts
from jaxformer.objectives import MaskedLM, SentencePermutation, Supervision
from jaxformer.tasks import Classification, TextToText
from jaxformer.tokenizers import ByteBPE, Tokenizer, WordPiece, train_tokenizer


def cut(text: str, starts: list[int]) -> str:
    return "".join("|" * (place in starts) + character for place, character in enumerate(text))


@pytest.mark.parametrize(
    "marked",
    [
        "|One. |Two! |Three? |4 is a digit. |(In brackets.) |[And these.]",
        '|He said "stop." |Then (he left.) |"Why?" |\'Because.\'',
        '|"Really?" he said. |Then he left.',
        "|See e.g. Smith, i.e. No. 5, (etc.) Or Mr. Fox and Dr. A. Hare vs. Prof. B. Not split",
        "|A capital first. so no split, version 1.5 and os.path stay",
        "|the fox ran. |the dog slept! |did it? |yes. |mr. fox e.g. this, etc. and so. |version 1.5",
        "|A heading\n\n|and a paragraph\n  \n|another\n \n \n|last",
        "|Ends in etc.\n\n|After a blank line. |Next",
        "  |Leading space. |Then trailing. ",
        "\n\n|Blank lines first.\n\n",
        "|One line.\n|Next line, one\nsentence over two lines",
        "|one",
        "|Hi there!! |Wow... |OK",
        "|a != b and http://a.b/?q=A is",
        "|Лиса бежит. |Собака спит! |А. С. Пушкин писал… |Потом ушёл.",
        "|лиса бежит. |собака спит. |да",
        "|Der Fuchs. |Älter ist er. |Über alles! |„Öfter“, sagt er. |Ö",
        "|Hallo.“ |Dann »Ja.« |Nein",
        "|¿Qué tal? |¿Bien? |¡Sí! |Últimamente no.",
        "|— Привет! |— Пока.",
        "|Καλά. |Όχι.",
        "|狐狸跑了。|狗睡了！|真的吗？|“是。”|他说，好。，不",
        "|是吗?|是的!|好",
        "|日本語です。|３．１４です。|はい．|「次。」|終",
        "|안녕하세요. |잘 지내요? |네",
        "|क्या हाल है। |ठीक है॥ |अच्छा",
        "|هل أنت بخير؟ |نعم۔ |حسنا. |ثم",
        "|שלום. |מה שלומך? |טוב",
        "|ሰላም።|ነው",
        "|ខ្ញុំ។ |គាត់",
        "|Բարեւ։ |Ինչպես",
        "|𑀅𑁇 |𑀆",
    ],
)
def test_sentences_begin_where_a_reader_says(marked: str) -> None:
    text = marked.replace("|", "")
    assert cut(text, sentence_starts(text)) == marked


def test_lines_are_sentences_where_asked() -> None:
    marked = " |one. two\n\n|three\r\n|vier. Fünf\u2028|six\n"
    text = marked.replace("|", "")
    assert cut(text, line_starts(text)) == marked


SENTENCES = {
    "Russian": ["Лиса бежит через лес.", "Собака спит дома.", "Потом идёт дождь."],
    "Chinese": ["狐狸跑过森林。", "狗在家睡觉。", "然后下雨了。"],
    "lower case": ["the fox runs.", "the dog sleeps at home.", "then it rains."],
    "umlauts": ["Über den Wald.", "Ältere Hunde schlafen.", "Öfter regnet es."],
    "Hindi": ["लोमड़ी दौड़ती है।", "कुत्ता सोता है।", "फिर बारिश होती है।"],
}
MASKED = MaskedLM(sequence_length=48, max_predictions=4, dupe_factor=3)


def corpus(folder: Path, documents: list[str], **settings: str) -> Text:
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return Text(path=str(folder / "text.txt"), validation_share=1e-9, **settings)


def tokenizer_of(source: Text, kind: type = WordPiece) -> Tokenizer:
    return train_tokenizer(
        kind(vocab_size=400, **({"special": "bart"} if kind is ByteBPE else {})), source.documents("train")
    )


@pytest.mark.parametrize("language", SENTENCES)
def test_next_sentence_labels_are_of_both_kinds_in_every_language(language: str, tmp_path: Path) -> None:
    joined = "" if language == "Chinese" else " "
    source = corpus(tmp_path, [joined.join(SENTENCES[language] * 4) for _ in range(40)])
    tokenizer = tokenizer_of(source)
    members = prepare(source, MASKED.bind(tokenizer.vocabulary), tokenizer, "train", seed=0, cache=tmp_path)
    labels = members[0].rows.index["label"]
    assert len(labels) > 100 and 0.3 < labels.mean() < 0.7
    assert doubts(members) == []


def test_labels_that_are_nearly_all_equal_are_said_unless_lines_are_sentences(tmp_path: Path) -> None:
    documents = ["\n".join(["ไก่ไปป่า", "หมานอน", "ฝนตก"] * 3) for _ in range(30)]
    found = {}
    for rule in ("unicode", "lines"):
        source = corpus(tmp_path, documents, sentences=rule)
        tokenizer = tokenizer_of(source)
        members = prepare(source, MASKED.bind(tokenizer.vocabulary), tokenizer, "train", seed=0, cache=tmp_path)
        found[rule] = (members[0].rows.index["label"].mean(), doubts(members))
    assert found["unicode"][0] == 1.0 and "100.0% of 90 labels are 'random'" in found["unicode"][1][0]
    assert 0.2 < found["lines"][0] < 0.8 and found["lines"][1] == []


def test_a_corpus_of_one_document_is_said(tmp_path: Path) -> None:
    source = corpus(tmp_path, [" ".join(SENTENCES["umlauts"] * 30)])
    tokenizer = tokenizer_of(source)
    members = prepare(source, MASKED.bind(tokenizer.vocabulary), tokenizer, "train", seed=0, cache=tmp_path)
    assert ["the corpus is one document" in doubt for doubt in doubts(members)] == [True]


@pytest.mark.parametrize(
    ("documents", "said"), [(["ไก่ไปป่าหมานอน"] * 40, True), (["Лиса бежит. Ура!", "狐狸跑了。狗睡了！"] * 20, False)]
)
def test_a_permutation_that_moves_nothing_is_said(documents: list[str], said: bool, tmp_path: Path) -> None:
    source = corpus(tmp_path, documents)
    tokenizer = tokenizer_of(source, ByteBPE)
    objective = SentencePermutation(sequence_length=24).bind(tokenizer.vocabulary)
    members = prepare(source, objective, tokenizer, "train", seed=0, cache=tmp_path)
    found = ["sentence permutation: 100.0% of 40 documents" in doubt for doubt in doubts(members)]
    assert found == [True] * said
    assert len(members[0].rows.store.sentence_starts) == (40 if said else 80)


@pytest.mark.parametrize(
    ("task", "read"),
    [
        (Classification(text_fields=("a",)), "abcd"),
        (Classification(text_fields=("b", "a")), "abcdefgh"),
        (TextToText(input="{a}"), "abcdwxyz"),
        (TextToText(input="kl: {a}", words={"wxy": "ab", "xyz": "uv"}), "abcdkluv:"),
        (MASKED, "ijkl"),
    ],
)
def test_a_tokenizer_is_trained_on_what_is_read(task: Supervision, read: str, tmp_path: Path) -> None:
    rows = [{"text": "ijkl", "a": "abcd", "b": "efgh", "label": label} for label in ("wxy", "xyz")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = JSONLines(path=str(tmp_path / "rows.jsonl"), validation_share=1e-9)
    assert set("".join(training_texts(source, task))) == set(read)
    tokenizer = corpus_tokenizer(WordPiece(vocab_size=60), source, task)
    assert {token for token in tokenizer.backend.get_vocab() if len(token) == 1} == set(read)

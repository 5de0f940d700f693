"""What `objectives show` prints of each objective, and its JSON."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers as hf
from shown import MASKED_MEMBERS, MEMBERS, PAIRS, TEXT, Verb, pairs_in, parts, printed, text_in, verb
from tokenizers import decoders, models

from jaxformer.explain import showing
from jaxformer.explain.examples import draw_examples
from jaxformer.objectives import OBJECTIVES
from jaxformer.tokenizers import ByteBPE, Tokenizer, train_tokenizer

CARRIED = [(name, family) for name, kind in OBJECTIVES.items() for family in kind.families]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return text_in(tmp_path)


@pytest.fixture
def objectives(capsys: pytest.CaptureFixture[str]) -> Verb:
    return verb(capsys)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return pairs_in(tmp_path)


# Every objective.


@pytest.mark.parametrize(("name", "family"), CARRIED)
def test_every_objective_is_shown(objectives: Verb, text: Path, pairs: Path, name: str, family: str) -> None:
    members = MASKED_MEMBERS if family == "encoder_only" else MEMBERS
    words = [f"--config.objective.members={members}"] if name == "mixture" else []
    source = pairs if name == "parallel_text" else text
    code, out, err = objectives("show", name, f"--text={source}", f"--family={family}", "--length=24", *words)
    assert (code, err) == (0, "") and "\x1b" not in out
    assert out.startswith(f"{name} · ") and f"{family}, " in out.splitlines()[0]
    assert len(re.findall("^example", out, re.MULTILINE)) == 2
    reads = {"encoder reads", "decoder reads"} if family == "encoder_decoder" else {"reads"}
    found = parts(out)
    assert reads | {"predicts"} <= set(found) and all(found[title] for title in reads)


@pytest.mark.parametrize("name", ["masked_lm", "span_corruption", "denoising", "causal_lm"])
def test_json_has_every_array(objectives: Verb, text: Path, name: str) -> None:
    code, out, err = objectives("show", name, f"--text={text}", "--length=24", "--examples=3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["objective"], found["settings"]["sequence_length"], len(found["examples"])) == (name, 24, 3)
    drawn = draw_examples(text, name, length=24, count=3)
    for entry, example in zip(found["examples"], drawn.drawn, strict=True):
        assert entry["arrays"] == {array: values.tolist() for array, values in example.arrays.items()}
        assert set(entry["arrays"]) == set(drawn.objective.shapes)
        for array, places in entry["put_in"].items():
            assert entry["tokens"][array] == drawn.tokenizer.tokens(example.arrays[array])
            assert len(places) == len(entry["tokens"][array])


def test_the_script_answers_like_the_module(
    run_cli: Callable[..., "subprocess.CompletedProcess[str]"], objectives: Verb, text: Path
) -> None:
    words = ("show", "masked_lm", f"--text={text}", "--length=24")
    done = run_cli("objectives", *words)
    assert (done.returncode, done.stdout, done.stderr) == objectives(*words)


# What is printed.


def test_the_target_of_causal_lm_is_the_next_token(objectives: Verb, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two three four five six seven")
    code, out, _ = objectives("show", "causal_lm", f"--text={path}", "--examples=1", "--length=10")
    assert code == 0
    assert out.splitlines() == [
        "causal_lm · rows of 11 tokens · room for 10 predictions · sequence_length=10 · decoder_only, causal",
        "tokenizer: 282 tokens, ByteBPE, trained on text.txt",
        "{put in by the objective}, ·within a word·",
        "",
        "example 0 · row 0 of 1",
        "  reads 7 tokens … 3 padding",
        "    ·one two three four five six seven",
        "  predicts 7 tokens",
        "    two three four five six seven <|endoftext|>",
    ]


def test_masked_words_are_listed_with_their_originals(objectives: Verb, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()  # each a token
    path.write_text(" ".join(words))
    settings = ["--config.objective.next_sentence=False", "--config.objective.masking_rate=0.4"]
    code, out, _ = objectives("show", "masked_lm", f"--text={path}", "--examples=4", "--length=16", *settings)
    assert code == 0 and "next_sentence=False · masking_rate" not in out
    assert "masking_rate=0.4 · next_sentence=False" in out.splitlines()[0]
    kinds = set()
    for example in out.split("\nexample")[1:]:
        found = parts(example)
        read = found["reads"][0].split()
        assert (read[0], read[-1]) == ("{[CLS]}", "[SEP]")  # that of the document, which ends the row too
        listed = re.findall(r"(\d+): (\S+) -> (\S+)", found["predicts"][0])
        assert len(listed) == 5
        for place, seen, target in listed:
            assert read[int(place)] == seen
            kinds.add("mask" if seen == "{[MASK]}" else "kept" if seen == target else "random")
            assert kinds <= {"mask", "kept", "random"} and (seen == target or seen.startswith("{"))
            read[int(place)] = target
        assert read[1:-1] == words
    assert "mask" in kinds


def test_a_head_is_named_with_what_it_says(text: Path) -> None:
    shown = draw_examples(text, "masked_lm", count=8)
    out = printed(shown)
    said = re.findall(r"^  next_sentence (.*)$", out, re.MULTILINE)
    values = [int(example.arrays["next_sentence_targets"]) for example in shown.drawn]
    assert said == [["0, B follows", "1, B is random"][value] for value in values] and len(set(values)) == 2
    for example in out.split("\nexample")[1:]:
        first, second = parts(example)["reads"]
        assert first.startswith("type 0: {[CLS]} ") and first.endswith(" {[SEP]}")
        assert second.startswith("type 1: ") and second.endswith(" {[SEP]}")


def test_spans_and_their_sentinels(objectives: Verb, text: Path) -> None:
    code, out, _ = objectives("show", "span_corruption", f"--text={text}", "--examples=1", "--length=32")
    found = parts(out)
    assert code == 0 and list(found) == ["encoder reads", "decoder reads", "predicts"]
    source, read, target = (found[title][0] for title in found)
    assert "{<extra_id_0>}" in source and source.endswith("{</s>}")
    assert read.startswith("{<pad>} {<extra_id_0>}")
    assert target == read.removeprefix("{<pad>} ") + " {</s>}"


def test_source_and_target_in_one_row(text: Path) -> None:
    for visibility, first in (("causal", "source"), ("prefix", "prefix")):
        shown = draw_examples(text, "span_corruption", family="decoder_only", visibility=visibility, count=1, length=32)
        found = parts(printed(shown))
        source, target = found["reads"]
        assert source.startswith(f"{first}: ") and source.endswith("{</s>}")
        prefix = int(shown.drawn[0].arrays["prefix_length"])
        predicted = target.removeprefix("target: ") + " {</s>}"
        assert found["predicts"] == [f"(no weight at 0 to {prefix - 2}) {predicted}"]


def test_segments_stand_apart(text: Path, pairs: Path) -> None:
    settings = ["objective.packing=documents", "objective.document_mask=True"]
    found = parts(printed(draw_examples(text, "causal_lm", count=1, length=200, overrides=settings)))
    assert [line.partition(":")[0] for line in found["reads"]] == ["segment 1", "segment 2", "segment 3"]
    # The last token of a document predicts nothing.
    assert [line.endswith(")") for line in found["predicts"]] == [True, True, False]
    assert re.search(r"<\|endoftext\|> \(no weight at \d+\)$", found["predicts"][0])
    found = parts(printed(draw_examples(pairs, "parallel_text", count=1)))
    assert all(len(found[title]) == len(PAIRS) for title in ("encoder reads", "decoder reads", "predicts"))
    readable = [line.replace("·", "").replace("␣", "").replace(" ", "") for line in found["predicts"]]
    wanted = [f"segment{n}:{pair['target']}{{</s>}}".replace(" ", "") for n, pair in enumerate(PAIRS, 1)]
    assert readable == wanted


def test_a_mixture_says_what_each_example_is_of(text: Path) -> None:
    shown = draw_examples(text, "mixture", count=12, length=32, overrides=[f"objective.members={MEMBERS}"])
    out = printed(shown)
    assert re.search("^  75% span_corruption · rows of .* sequence_length=32$", out, re.MULTILINE)
    assert re.search("^  25% prefix_lm · ", out, re.MULTILINE)
    said = re.findall(r"^example \d+ · (\w+)", out, re.MULTILINE)
    assert said == [example.objective.name for example in shown.drawn] and len(set(said)) == 2
    for example, name in zip(out.split("\nexample")[1:], said, strict=True):
        assert ("{<extra_id_0>}" in example) == (name == "span_corruption")


def test_colours_are_for_terminals(text: Path) -> None:
    shown = draw_examples(text, "masked_lm", count=1)
    piped = printed(shown)
    assert "\x1b" not in piped and "{[CLS]}" in piped and "{[MASK]}" in piped
    coloured = printed(shown, force_terminal=True, color_system="standard")
    assert "{" not in coloured and "\x1b[36m[CLS]\x1b[0m" in coloured  # put in
    assert "\x1b[1;4;36m[MASK]\x1b[0m" in coloured  # and predicted
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in coloured.splitlines()) <= 100
    without = printed(shown, force_terminal=True, color_system=None)
    assert "\x1b[36m" not in without and "{[CLS]}" in without


def test_a_weight_other_than_one_is_told(text: Path) -> None:
    shown = draw_examples(text, "masked_lm", count=1)
    arrays = shown.drawn[0].arrays
    arrays["weights"][:2] = [0.5, 0]
    listed = re.split(" {3}", parts(printed(shown))["predicts"][0])
    assert listed[0].endswith(" (weight 0.5)") and listed[0].startswith(f"{arrays['predict_positions'][0]}: ")
    assert not any(entry.startswith(f"{arrays['predict_positions'][1]}: ") for entry in listed)
    shown = draw_examples(text, "causal_lm", count=1)
    shown.drawn[0].arrays["weights"][3:5] = [0.25, 0]
    assert re.match(r"(\S+ ){3}\S+ \(weight 0.25\) \(no weight at 4\) ", parts(printed(shown))["predicts"][0])


def by_hand(model: models.Model, decoder: decoders.Decoder) -> Tokenizer:
    backend = hf.Tokenizer(model)
    backend.decoder = decoder
    backend.add_special_tokens(["<pad>"])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("tokenizer", "wanted"),
    [
        pytest.param(
            by_hand(models.WordPiece({"word": 0, "##s": 1, "##": 2, ".": 3}, unk_token="."), decoders.WordPiece()),
            ["word", "·s", "·##", ".", "<pad>"],
            id="wordpiece",
        ),
        pytest.param(
            by_hand(models.Unigram([("▁two", -1.0), ("s", -2.0), ("▁", -3.0)], 1), decoders.Metaspace()),
            ["two", "·s", "␣", "<pad>"],
            id="unigram",
        ),
        pytest.param(
            by_hand(
                models.BPE({"Ġtwo": 0, "s": 1, "Ċ": 2, "ĉ": 3, "Ġ": 4, "ĠĠ": 5, "ĠÃ©": 6, "Ã": 7, "Ľ": 8}, []),
                decoders.ByteLevel(),
            ),
            ["two", "·s", "·⏎", "·⇥", "␣", "␣␣", "é", "·\ufffd", "·\ufffd", "<pad>"],
            id="byte_bpe",
        ),
        pytest.param(
            by_hand(
                models.BPE({"two</w>": 0, "wor": 1, "d</w>": 2}, [], end_of_word_suffix="</w>"), decoders.BPEDecoder()
            ),
            ["two", "wor·", "d", "<pad>"],
            id="bpe with ends of words",
        ),
        pytest.param(
            by_hand(models.WordPiece({"word": 0, ".": 3}, unk_token="."), decoders.WordPiece()),
            ["word", "<1>", "<pad>", "."],
            id="an id left out",
        ),
    ],
)
def test_pieces_are_readable(tokenizer: Tokenizer, wanted: list[str]) -> None:
    assert showing.pieces(tokenizer, range(tokenizer.vocab_size)) == wanted


def test_a_piece_has_no_space_in_it_nor_anything_that_moves_a_cursor() -> None:
    tokenizer = train_tokenizer(ByteBPE(), [TEXT])
    everything = showing.pieces(tokenizer, range(tokenizer.vocab_size))
    assert all(piece.isprintable() and piece and " " not in piece for piece in everything)

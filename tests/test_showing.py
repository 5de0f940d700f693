"""Objectives in words: the table of who carries which, and the examples that `objectives show` draws and prints."""

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf
from rich.console import Console
from tokenizers import decoders, models

from jaxformer import compatibility, showing
from jaxformer import config as configs
from jaxformer.cli import main
from jaxformer.data.batches import train_batches
from jaxformer.data.prepare import corpus_tokenizer, prepare
from jaxformer.errors import UserError
from jaxformer.examples import Examples, draw_examples
from jaxformer.models.config import FAMILIES
from jaxformer.objectives import NOT_PROVIDED, OBJECTIVES
from jaxformer.objectives.mixture import Mixture
from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXT = """The quick brown fox jumps over the lazy dog. It was a sunny day. Nobody had seen the dog, but the fox had.

A second text is about foxes. The fox is quick and the dog is lazy. They are friends, and the day is sunny.

Every text has words. The words are read from left to right. The dog reads no words, and the fox reads two.
"""
PAIRS = [
    {"source": "a small house", "target": "ein kleines Haus"},
    {"source": "the dog is in the house", "target": "der Hund ist im Haus"},
    {"source": "a small dog", "target": "ein kleiner Hund"},
]
MEMBERS = '[{"name": "span_corruption", "weight": 3}, {"name": "prefix_lm"}]'
MASKED_MEMBERS = '[{"name": "masked_lm"}, {"name": "masked_lm", "masking_rate": 0.4}]'
CARRIED = [(name, family) for name, kind in OBJECTIVES.items() for family in kind.families]
REFUSED = [(name, family) for name, kind in OBJECTIVES.items() for family in FAMILIES if family not in kind.families]
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    return path


@pytest.fixture
def objectives(capsys: pytest.CaptureFixture[str]) -> Verb:
    """Return a function that runs the verb in this process: (exit code, stdout, stderr)."""

    def command(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main(["objectives", *map(str, words)])
        except SystemExit as stop:  # argparse's own
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


def printed(shown: Examples, **settings: object) -> str:
    console = Console(file=io.StringIO(), width=100, **settings)
    showing.print_examples(shown, console)
    return console.file.getvalue()


def parts(out: str) -> dict[str, list[str]]:
    """Return what stands below each title of the (last) example."""
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        if match := re.fullmatch(r"  (\w.*?)(?: \d+ tokens?.*)?", line):
            title = match[1]
            found[title] = []
        elif line.startswith("    "):
            found[title].append(line.strip())
    return found


# The table.


def test_every_family_is_carried_or_refused_with_a_reason() -> None:
    entries = compatibility.entries()
    assert [entry["name"] for entry in entries] == [*OBJECTIVES, *NOT_PROVIDED]
    for entry in entries[: len(OBJECTIVES)]:
        kind = OBJECTIVES[entry["name"]]
        assert (entry["paper"], entry["provided"]) == (kind.paper, True)
        assert list(entry["families"]) == list(FAMILIES)
        for family, reason in entry["families"].items():
            assert reason is None if family in kind.families else reason == kind.refusals[family] != ""
    for entry in entries[len(OBJECTIVES) :]:
        assert not entry["provided"] and all(entry["families"].values())


@pytest.mark.parametrize(("name", "family"), REFUSED)
def test_the_reason_is_that_of_the_error(name: str, family: str) -> None:
    (entry,) = [entry for entry in compatibility.entries() if entry["name"] == name]
    with pytest.raises(UserError, match=re.escape(entry["families"][family])):
        OBJECTIVES[name]().carried_by(family, "causal")


def test_the_piped_table_is_plain_and_whole(objectives: Verb) -> None:
    code, out, err = objectives()
    assert (code, err) == (0, "") and "\x1b" not in out
    rows = {words[0]: words[1:] for line in out.split("\n\n")[0].splitlines() if (words := line.split())}
    for name, kind in OBJECTIVES.items():
        assert rows[name] == [*compatibility.marks(kind).values(), *kind.paper.split()]
    assert rows["span_corruption"][:3] == ["✓*", "–", "✓"] and rows["masked_lm"][:3] == ["–", "✓", "–"]
    assert rows["mixture"][:3] == ["✓", "✓", "✓"] and rows["causal_lm"][:3] == ["✓", "✓", "–"]
    lines = [line.strip() for line in out.splitlines()]
    for (family, reason), names in compatibility.refusals().items():
        assert lines[lines.index(f"{family}: {reason}") + 1] == ", ".join(names)
    for name, (paper, reason) in NOT_PROVIDED.items():
        assert lines[lines.index(f"{name}: {reason}") + 1] == paper


def test_the_table_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    compatibility.print_table(console)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert all(re.search(rf"^{name} ", shown, re.MULTILINE) for name in OBJECTIVES)


def test_json_of_the_table(objectives: Verb) -> None:
    code, out, err = objectives("--json")
    assert (code, err) == (0, "") and json.loads(out) == compatibility.entries()
    assert json.loads(out)[0] == {
        "name": "causal_lm",
        "paper": OBJECTIVES["causal_lm"].paper,
        "families": {
            "decoder_only": None,
            "encoder_only": None,
            "encoder_decoder": "its encoder would read nothing; that is plain_lm",
        },
        "provided": True,
    }


def test_the_table_waits_for_nothing_heavy() -> None:
    program = (
        "import sys\nfrom jaxformer.cli import main\nmain(['objectives'])\nmain(['objectives', '--json'])\n"
        "print(*{'jax', 'flax', 'grain', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "\n")


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- objectives -->\n(.*)<!-- /objectives -->", readme, re.DOTALL)
    assert table == compatibility.markdown_table()


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


# The examples are those of training.


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        ("gpt:smoke", []),
        ("bert:smoke", []),
        ("t5:smoke", []),
        ("t5:smoke", ["objective.name=mixture", f"objective.members={MEMBERS}"]),
        ("bart:smoke", []),
    ],
)
def test_examples_are_those_that_training_draws(text: Path, experiment: str, changes: list[str]) -> None:
    data = ["data.name=text", f"data.path={text}", "data.validation_share=1e-12", "seed=5"]
    config = configs.load(experiment, [*data, *changes])
    tokenizer = corpus_tokenizer(config.tokenizer, config.data, config.supervision)
    vocabulary = tokenizer.vocabulary
    if config.model.family == "encoder_decoder":
        vocabulary = vocabulary.starting(config.model.decoder_start)
    objective = config.objective.bind(vocabulary)
    members = prepare(config.data, objective, tokenizer, "train", seed=5)
    batches = train_batches(members, seed=5, batch_size=2)
    drawn = [next(batches) for _ in range(5)]
    batches.close()
    shown = draw_examples(text, config=experiment, seed=5, count=10, overrides=changes)
    assert shown.tokenizer.fingerprint == tokenizer.fingerprint
    for number, example in enumerate(shown.drawn):
        batch = drawn[number // 2]
        assert set(example.arrays) == set(batch)
        for name, values in example.arrays.items():
            np.testing.assert_array_equal(values, batch[name][number % 2], err_msg=name)


def test_what_was_put_in_is_known(text: Path) -> None:
    """Of span corruption all special tokens are put in, and nothing else is; a random token is put in as well."""
    shown = draw_examples(text, "span_corruption", count=4)
    special = shown.tokenizer.vocabulary.is_special
    for example in shown.drawn:
        real = example.arrays["encoder_segment_ids"] > 0
        np.testing.assert_array_equal(
            example.put_in["encoder_inputs"], special[example.arrays["encoder_inputs"]] & real
        )
        assert not example.put_in["encoder_inputs"][~real].any()
    shown = draw_examples(text, "masked_lm", count=4, overrides=["objective.mask_share=0", "objective.random_share=1"])
    for example in shown.drawn:
        own = example.arrays["weights"] > 0
        assert example.put_in["inputs"][example.arrays["predict_positions"][own]].all()
        assert not example.put_in["targets"].any()


def test_the_seed_decides(text: Path) -> None:
    first, again, other = (
        [example.arrays["inputs"].tolist() for example in draw_examples(text, "masked_lm", seed=seed, count=4).drawn]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert [e.arrays["inputs"].tolist() for e in draw_examples(text, "masked_lm", seed=1, count=1).drawn] == first[:1]


def test_nothing_is_left_on_disk(
    text: Path, tmp_path: Path, jaxformer_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = sorted(jaxformer_cache.rglob("*"))
    draw_examples(text, "span_corruption")
    assert sorted(jaxformer_cache.rglob("*")) == before and list(folder.iterdir()) == []


def test_no_document_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(f"word{number}" for number in range(200)))
    # A word and [SEP] fill a row.
    settings = ["objective.packing=documents"]
    shown = draw_examples(path, "causal_lm", family="encoder_only", count=1, length=2, overrides=settings)
    assert shown.drawn[0].num_rows == 200


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


def test_prefix_lm_asks_for_the_visibility_that_it_needs(text: Path) -> None:
    shown = draw_examples(text, "prefix_lm")
    assert (shown.family, shown.visibility) == ("decoder_only", "prefix")
    assert [line.partition(":")[0] for line in parts(printed(shown))["reads"]] == ["prefix", "target"]


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


def test_a_mixture_finds_the_family_that_carries_it(text: Path) -> None:
    shown = draw_examples(text, "mixture", overrides=[f"objective.members={MASKED_MEMBERS}"])
    assert isinstance(shown.objective, Mixture) and shown.family == "encoder_only"


def test_members_may_have_lengths_of_their_own(text: Path) -> None:
    members = '[{"name": "span_corruption", "sequence_length": 40}, {"name": "drop_tokens"}]'
    shown = draw_examples(text, "mixture", length=20, overrides=[f"objective.members={members}"])
    assert [part.objective.sequence_length for part in shown.objective.mixed()] == [40, 20]


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


# What is chosen.


def test_an_experiment_gives_its_settings(objectives: Verb, text: Path) -> None:
    code, out, _ = objectives("show", "--config=t5:smoke", f"--text={text}", "--examples=1")
    assert code == 0
    assert out.startswith("span_corruption · rows of ") and "sequence_length=128 · encoder_decoder, causal" in out
    code, out, _ = objectives("show", "--config=t5:smoke", f"--text={text}", "--length=32", "--examples=1")
    assert code == 0 and "sequence_length=32 ·" in out
    code, out, _ = objectives("show", "drop_tokens", "--config=t5:smoke", f"--text={text}", "--examples=1")
    assert code == 0 and out.startswith("drop_tokens · ") and "sequence_length=128" in out
    one_row = ("--family=decoder_only", "--visibility=prefix")
    code, out, _ = objectives("show", "--config=t5:smoke", *one_row, f"--text={text}", "--examples=1")
    assert code == 0 and "decoder_only, prefix" in out


def test_a_key_of_the_objective_comes_before_the_length(text: Path) -> None:
    for settings in ({"name": "span_corruption"}, {"name": "", "config": "t5:smoke"}):
        given = {"length": 32, "overrides": ["objective.sequence_length=40"]}
        assert draw_examples(text, **settings, **given).objective.sequence_length == 40


def test_an_experiment_of_a_file(objectives: Verb, text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from jaxformer.experiments import bert\n\ndef get_config(arg=''):\n    config = bert.get_config('smoke')\n"
        "    config.objective.update({'next_sentence': False, 'masking_rate': 0.4})\n    return config\n"
    )
    code, out, _ = objectives("show", f"--config={tmp_path / 'mine.py'}", f"--text={text}")
    assert code == 0 and "masking_rate=0.4" in out and "next_sentence 0" not in out


@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [
        ("causal_lm", "decoder_only", ByteBPE()),
        ("causal_lm", "encoder_only", WordPiece()),
        ("prefix_lm", "encoder_decoder", Unigram()),
        ("span_corruption", "decoder_only", Unigram()),
        ("text_infilling", "encoder_decoder", ByteBPE(special="bart")),
        ("masked_lm", "encoder_only", WordPiece()),
    ],
)
def test_the_tokenizer_is_of_the_papers_kind(text: Path, name: str, family: str, kind: object) -> None:
    shown = draw_examples(text, name, family=family, length=24)
    documents = TEXT.split("\n\n")
    assert shown.tokenizer.fingerprint == train_tokenizer(kind, [part.strip() for part in documents]).fingerprint
    assert shown.origin == f"{type(kind).__name__}, trained on text.txt"


def test_barts_decoder_starts_with_the_end(text: Path) -> None:
    assert parts(printed(draw_examples(text, "denoising")))["decoder reads"][0].startswith("{</s>} {<s>}")


def test_another_tokenizer(objectives: Verb, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    train_tokenizer(WordPiece(vocab_size=60), ["the quick brown fox"]).save(path)
    code, out, _ = objectives("show", "masked_lm", f"--text={text}", f"--tokenizer={path}", "--length=24")
    assert code == 0 and re.search(rf"^tokenizer: \d+ tokens, {re.escape(str(path))}$", out, re.MULTILINE)
    code, out, _ = objectives("show", "masked_lm", f"--text={text}", "--config.tokenizer.name=wordpiece",
                              "--config.tokenizer.vocab_size=90")  # fmt: skip
    assert code == 0 and "tokenizer: 90 tokens, WordPiece, trained on text.txt" in out


# Errors.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["masked_ml"], "no objective 'masked_ml'; did you mean 'masked_lm'?", id="name"),
        pytest.param([], "give NAME or --config; there are causal_lm, ", id="no name"),
        pytest.param(["masked_lm", "--text=nowhere.txt"], "--text=nowhere.txt: no such file", id="file"),
        pytest.param(["masked_lm", "--text=empty.txt"], "--text=empty.txt: there is no text in it", id="empty"),
        pytest.param(["masked_lm", "--text=empty.jsonl"], "--text=empty.jsonl: there is no text in it", id="no lines"),
        pytest.param(["masked_lm", "--text=binary.txt"], "binary.txt:1: not UTF-8", id="binary"),
        pytest.param(["masked_lm", "--text=text.txt", "--family=decoder_only"],
                     OBJECTIVES["masked_lm"].refusals["decoder_only"], id="family"),
        pytest.param(["plain_lm", "--text=text.txt", "--family=decoder_only"],
                     OBJECTIVES["plain_lm"].refusals["decoder_only"], id="another family"),
        pytest.param(["masked_lm", "--family=encodr_only"], "did you mean 'encoder_only'?", id="no family"),
        pytest.param(["masked_lm", "--visibility=prefix"], "masked_lm has no prefix", id="visibility"),
        pytest.param(["masked_lm", "--visibility=half"], "'half' is not one of full, causal", id="no visibility"),
        pytest.param(["masked_lm", "--config.objective.masking_rat=0.2"], "'masking_rate'", id="key"),
        pytest.param(["masked_lm", "--config.objective.masking_rate=2"], "between 0 and 1", id="value"),
        pytest.param(["masked_lm", "--config.objectve.masking_rate=0.2"], "'objective'", id="section"),
        pytest.param(["masked_lm", "--length=2"], "objective.sequence_length: 2 must be at least 5", id="length"),
        pytest.param(["masked_lm", "--length=0"], "objective.sequence_length: 0 must be at least 5", id="no length"),
        pytest.param(["masked_lm", "--examples=0"], "--examples=0: must be 1 or more", id="examples"),
        pytest.param(["mixture"], "mixture: it needs members; give --config.objective.members=", id="members"),
        pytest.param(["mixture", '--config.objective.members=[{"name": "spans"}]'],
                     "objective.members[0].name: no 'spans'", id="member"),
        pytest.param(["mixture", '--config.objective.members=[{"name": "masked_lm"}, {"name": "plain_lm"}]'],
                     "objective.members[0].name: masked_lm cannot train a model of", id="members of two families"),
        pytest.param(["span_corruption", "--tokenizer=wordpiece.json"], "but the tokenizer has 0", id="sentinels"),
        pytest.param(["denoising", "--tokenizer=bpe.json"], "the tokenizer has no 'mask' token", id="no mask"),
        pytest.param(["masked_lm", "--tokenizer=nowhere.json"], "no tokenizer file nowhere.json", id="tokenizer"),
        pytest.param(["parallel_text"], "give a .jsonl file with the fields source and target", id="pairs"),
        pytest.param(["parallel_text", "--text=fields.jsonl"], "fields.jsonl:1: no field 'source'", id="fields"),
        pytest.param(["masked_lm", "--text=fields.jsonl"], "fields.jsonl:1: no field 'text'", id="no text field"),
        pytest.param(["parallel_text", "--text=broken.jsonl"], "broken.jsonl:1: not JSON", id="no JSON"),
        pytest.param(["--config=t5:smok"], "--config=t5:smok: ", id="experiment"),
        pytest.param(["--config=finetune_area:bert,smoke"], "it has a task, not an objective", id="task"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    objectives: Verb, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.txt": b"\n \n", "empty.jsonl": b"\n", "binary.txt": b"\xff\xfe\n", "broken.jsonl": b"{]\n",
        "fields.jsonl": b'{"body": "some text"}\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    train_tokenizer(WordPiece(), [TEXT]).save(tmp_path / "wordpiece.json")
    train_tokenizer(ByteBPE(), [TEXT]).save(tmp_path / "bpe.json")
    given = [] if any(word.startswith("--text") for word in words) else ["--text=text.txt"]
    code, out, err = objectives("show", *words, *given)
    assert (code, out) == (2, "") and said in err
    assert err.startswith("jaxformer objectives: ") and err.count("\n") == 1

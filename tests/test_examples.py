"""The examples that `objectives show` draws: those of training, for the settings that were asked for, or one line."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from shown import MASKED_MEMBERS, MEMBERS, TEXT, Verb, parts, printed, text_in, verb

from jaxformer import config as configs
from jaxformer.data.batches import train_batches
from jaxformer.data.preparing import corpus_tokenizer, prepare
from jaxformer.explain.examples import draw_examples
from jaxformer.objectives import OBJECTIVES
from jaxformer.objectives.mixture import ObjectiveMixture
from jaxformer.tokenizers import ByteBPE, Unigram, WordPiece, train_tokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return text_in(tmp_path)


@pytest.fixture
def objectives(capsys: pytest.CaptureFixture[str]) -> Verb:
    return verb(capsys)


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
            example.inserted["encoder_inputs"], special[example.arrays["encoder_inputs"]] & real
        )
        assert not example.inserted["encoder_inputs"][~real].any()
    shown = draw_examples(text, "masked_lm", count=4, overrides=["objective.mask_share=0", "objective.random_share=1"])
    for example in shown.drawn:
        own = example.arrays["weights"] > 0
        assert example.inserted["inputs"][example.arrays["predict_positions"][own]].all()
        assert not example.inserted["targets"].any()


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


def test_a_mixture_finds_the_family_that_carries_it(text: Path) -> None:
    shown = draw_examples(text, "mixture", overrides=[f"objective.members={MASKED_MEMBERS}"])
    assert isinstance(shown.objective, ObjectiveMixture) and shown.family == "encoder_only"


def test_members_may_have_lengths_of_their_own(text: Path) -> None:
    members = '[{"name": "span_corruption", "sequence_length": 40}, {"name": "drop_tokens"}]'
    shown = draw_examples(text, "mixture", length=20, overrides=[f"objective.members={members}"])
    assert [part.objective.sequence_length for part in shown.objective.parts] == [40, 20]


def test_prefix_lm_asks_for_the_visibility_that_it_needs(text: Path) -> None:
    shown = draw_examples(text, "prefix_lm")
    assert (shown.family, shown.visibility) == ("decoder_only", "prefix")
    assert [line.partition(":")[0] for line in parts(printed(shown))["reads"]] == ["prefix", "target"]


# Errors.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["masked_ml"], "no objective 'masked_ml'; did you mean 'masked_lm'?", id="name"),
        pytest.param([], "give NAME or --config; there are causal_lm, ", id="no name"),
        pytest.param(["masked_lm", "--text=nowhere.txt"], "--text=nowhere.txt: no such file", id="file"),
        pytest.param(["masked_lm", "--text=empty.txt"], "--text=empty.txt: there is no text in it", id="empty"),
        pytest.param(["masked_lm", "--text=empty.jsonl"], "--text=empty.jsonl: there is no text in it", id="no lines"),
        pytest.param(["masked_lm", "--text=binary.txt"], "binary.txt: text in UTF-16LE, not UTF-8", id="binary"),
        pytest.param(["masked_lm", "--text=text.txt", "--family=decoder_only"],
                     OBJECTIVES["masked_lm"].refusals["decoder_only"], id="family"),
        pytest.param(["plain_lm", "--text=text.txt", "--family=decoder_only"],
                     OBJECTIVES["plain_lm"].refusals["decoder_only"], id="another family"),
        pytest.param(["masked_lm", "--family=encodr_only"], "did you mean 'encoder_only'?", id="no family"),
        pytest.param(["masked_lm", "--visibility=prefix"], "masked_lm has no prefix", id="visibility"),
        pytest.param(["masked_lm", "--visibility=half"], "'half' is not one of full, causal", id="no visibility"),
        pytest.param(["masked_lm", "--config.objective.masking_rat=0.2"], "'masking_rate'", id="key"),
        pytest.param(["masked_lm", "--config.objective.masking_rate=2"], "2.0 must be at least 0 and at", id="value"),
        pytest.param(["masked_lm", "--config.objectve.masking_rate=0.2"], "'objective'", id="section"),
        pytest.param(["masked_lm", "--length=2"], "objective.sequence_length: 2 must be at least 5", id="length"),
        pytest.param(["masked_lm", "--length=0"], "objective.sequence_length: 0 must be at least 5", id="no length"),
        pytest.param(["masked_lm", "--examples=0"], "--examples: 0 must be at least 1", id="examples"),
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
        pytest.param(["--config=finetune/area:bert,smoke"], "it has a task, not an objective", id="task"),
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

"""Scores of texts, continuations, choices and documents, against the same computed by hand from the full logits."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from runs import make_run, params_of
from sampling import sampled

import jaxformer
from jaxformer.checkpoint import save_params
from jaxformer.errors import UserError
from jaxformer.evaluation import continuation, rolling, scoring, token_scores
from jaxformer.runs.loading import LoadedRun
from jaxformer.trees import unflatten

TEXT, LONG = "A thread may wait.", "Open the file and read every line of it, one at a time, then wait."
CONTEXT, CONTINUATION = "Return the number of", " items in the queue."
CANDIDATES = [" items in the queue.", " files", " the lock"]
DOCUMENT = "Open the file and read every line of it.\n \n A thread may wait .\n" * 6
WIDTH = 64
Run = Callable[[str], LoadedRun]
Cli = Callable[..., tuple[int, str, str]]
MORE = {
    "gpt_prefix": ("gpt", "bpe", {"visibility": "prefix"}, runs._CAUSAL),
    "gpt_without_end": ("gpt2_124m", "wordpiece", {}, runs._CAUSAL),
    "gpt_writes": ("gpt2_124m", "bpe", {"visibility": "prefix"}, runs._WRITES),
    "bert_left": ("bert_base", "wordpiece", {"visibility": "causal"}, runs._CAUSAL),
    "bart_noise": ("bart_base", "bart", {}, {"objective": {"name": "denoising", "sequence_length": 32}}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the run of a case; its newest checkpoint, 8, tells texts apart."""
    made: dict[str, Path] = {}
    runs.CASES.update(MORE)
    runs._TOKENIZERS["bart"] = runs.ByteBPE(vocab_size=290, special="bart")

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_run(name, tmp_path_factory.mktemp("scoring") / name, num_layers=1)
            params = unflatten({path: array - np.float32(0.5) for path, array in params_of(made[name]).items()})
            save_params(made[name] / "checkpoints", params, step=8)
        return made[name]

    return get


@pytest.fixture(scope="module")
def loaded(folder: Callable[[str], Path]) -> Run:
    made: dict[str, LoadedRun] = {}

    def get(name: str) -> LoadedRun:
        if name not in made:
            made[name] = jaxformer.load(folder(name))
        return made[name]

    return get


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# By hand.

APPLY: dict[str, Any] = {}


def log_probs(run: LoadedRun, ids: Sequence[int], source: Sequence[int] = (), prefix: int = 0) -> np.ndarray:
    """The log-probabilities [T, V] at each place of one row, as one program computes them all."""

    def row(ids: Sequence[int]) -> list[np.ndarray]:
        real = np.arange(WIDTH)[None] < len(ids)
        return [np.pad(ids, (0, WIDTH - len(ids)))[None], np.arange(WIDTH)[None] * real, real.astype(np.int32)]

    names = ("inputs", "positions", "segment_ids")
    batch: dict[str, Any] = dict(zip(names, row(ids), strict=True))
    if len(source):
        batch |= dict(zip((f"encoder_{name}" for name in names), row(source), strict=True))
    if run.model.config.visibility == "prefix":
        batch["prefix_length"] = np.array([prefix])
    if run.config.name not in APPLY:
        APPLY[run.config.name] = jax.jit(
            lambda params, batch: run.model.project(params, run.model.apply(params, batch)["hidden"])
        )
    logits = np.asarray(APPLY[run.config.name](run.params, batch)[0, : len(ids)], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def by_hand(run: LoadedRun, before: Sequence[int], ids: Sequence[int], source: Sequence[int] = ()) -> list[float]:
    """The log-probability of each of some ids behind others."""
    rows = log_probs(run, [*before, *ids][:-1], source, len(before))
    return [float(rows[len(before) - 1 + n, token]) for n, token in enumerate(ids)]


def encode(run: LoadedRun, text: str, special: bool = False) -> list[int]:
    return run.tokenizer.encode(text, special=special).tolist()


def special(run: LoadedRun, *roles: str) -> list[int]:
    return [run.tokenizer.vocabulary.id(role) for role in roles]


# Texts and continuations.


def test_a_text_alone_and_behind_a_context(loaded: Run) -> None:
    run = loaded("gpt2")
    ids, before = encode(run, TEXT), encode(run, CONTEXT)
    found, wanted = run.score(TEXT), sum(by_hand(run, special(run, "end"), ids))
    assert found == {
        "log_likelihood": pytest.approx(wanted, rel=1e-5),
        "tokens": len(ids),
        "bytes": len(TEXT),
        "perplexity": pytest.approx(math.exp(-wanted / len(ids)), rel=1e-4),
        "bits_per_byte": pytest.approx(-wanted / math.log(2) / len(TEXT), rel=1e-5),
        "greedy": False,
    }
    assert run.score("", TEXT) == found
    own = encode(run, CONTEXT + CONTINUATION)[len(before) :]
    wanted_each = by_hand(run, before, own)
    found = run.score(CONTEXT, CONTINUATION, per_token=True)
    assert found["log_likelihood"] == pytest.approx(sum(wanted_each), rel=1e-5)
    assert [each["token"] for each in found["per_token"]] == run.tokenizer.tokens(own)
    assert [each["log_likelihood"] for each in found["per_token"]] == pytest.approx(wanted_each, rel=1e-4, abs=1e-5)
    ended = run.score(CONTEXT, CONTINUATION, end=True)
    assert ended["tokens"] == len(own) + 1 and ended["bytes"] == found["bytes"] == len(CONTINUATION)
    assert ended["log_likelihood"] == pytest.approx(sum(by_hand(run, before, [*own, *special(run, "end")])), rel=1e-5)
    assert run.score("é")["bytes"] == 2


def test_a_masked_model_predicts_each_token_from_all_others(loaded: Run) -> None:
    run = loaded("bert_masked")
    ids, (mask,) = encode(run, TEXT, special=True), special(run, "mask")
    wanted = 0.0
    for place in range(1, len(ids) - 1):
        row = [*ids[:place], mask, *ids[place + 1 :]]
        wanted += float(log_probs(run, row)[place, ids[place]])
    found, count = run.score([TEXT, LONG])[0], len(ids) - 2
    assert found["pseudo_log_likelihood"] == pytest.approx(wanted, rel=1e-5) and found["tokens"] == count
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(-wanted / count), rel=1e-4)
    assert "log_likelihood" not in found and "greedy" not in found


# Case -> what stands before a continuation where it is predicted, and what an encoder reads of the context.
READ: dict[str, Callable[[LoadedRun, list[int], list[int]], tuple[list[int], list[int]]]] = {
    "t5": lambda run, context, ended: (special(run, "pad"), ended),
    "bart_noise": lambda run, context, ended: (special(run, "end", "start"), ended),
    "gpt_prefix": lambda run, context, ended: (context, []),
    "gpt_writes": lambda run, context, ended: ([*context, *special(run, "end")], []),
    "bert_left": lambda run, context, ended: ([*special(run, "classify"), *context], []),
}


@pytest.mark.parametrize("name", READ)
def test_every_family_reads_a_context_as_it_was_trained_to(name: str, loaded: Run) -> None:
    run, context, text = loaded(name), "Return the number of", " items"
    if name == "t5":
        assert encode(run, context, special=True)[-1] == special(run, "end")[0]
    before, source = READ[name](run, encode(run, context), encode(run, context, special=True))
    found = run.score(context, text)
    assert found["log_likelihood"] == pytest.approx(sum(by_hand(run, before, encode(run, text), source)), rel=1e-5)


def test_without_a_token_to_start_from_the_first_one_is_not_counted(loaded: Run) -> None:
    run = loaded("gpt_without_end")
    ids = encode(run, TEXT)
    found = run.score(TEXT)
    assert found["log_likelihood"] == pytest.approx(sum(by_hand(run, ids[:1], ids[1:])), rel=1e-5)
    assert found["tokens"] == len(ids) - 1 and found["bytes"] == len(TEXT) - len("A")
    with pytest.raises(UserError, match="text 0: at most one token, .*give a context"):
        run.score("A")


def test_the_seam_between_context_and_continuation(loaded: Run) -> None:
    run = loaded("gpt2")
    (whole,) = run.tokenizer.encode_batch([LONG])
    first, end = next(place for place in whole.offsets if LONG[place[0]] == " " and place[1] - place[0] > 1)
    with_space, moved = run.score([LONG[:first], LONG[: first + 1]], [LONG[first:end], LONG[first + 1 : end]])
    same = ("log_likelihood", "tokens", "perplexity", "greedy")
    assert [moved[key] for key in same] == [with_space[key] for key in same]
    assert moved["bytes"] == with_space["bytes"] - 1 == end - first - 1
    first = next(
        first for first, end in whole.offsets if LONG[first:end].strip() == LONG[first:end] and end - first > 1
    )
    before, behind = LONG[: first + 1], LONG[first + 1 :]  # one token would cover letters of both
    assert encode(run, before) + encode(run, behind) != whole.ids
    wanted = sum(by_hand(run, encode(run, before), encode(run, behind)))
    assert run.score(before, behind)["log_likelihood"] == pytest.approx(wanted, rel=1e-5)
    assert run.score(" ", "the") == run.score(" the") | {
        "bytes": 3,
        "bits_per_byte": pytest.approx(run.score(" the")["bits_per_byte"] * 4 / 3),
    }  # nothing of the context is left: end of text stands before it


@pytest.mark.parametrize("name", sampled(["gpt2", "t5", "bert_masked"], path=lambda name: name, daily=["t5"]))
def test_scores_depend_on_no_batch_no_padding_and_no_order(
    name: str, loaded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = loaded(name)
    texts = [LONG, "A file.", TEXT, "Read it.", "A line."]
    behind = (
        None if name == "bert_masked" else [" the queue.", " a", " it", " the number of items in the queue", " items"]
    )
    alone = run.score(texts, behind, batch_size=1)
    key = next(iter(alone[0]))
    wanted = [one[key] for one in alone]
    assert len({round(value, 3) for value in wanted}) == len(wanted)
    assert run.score(TEXT, None if behind is None else behind[2])[key] == pytest.approx(wanted[2], rel=1e-5)
    together = run.score(texts, behind, batch_size=4)
    assert [one[key] for one in together] == pytest.approx(wanted, rel=1e-5)
    turned = run.score(texts[::-1], None if behind is None else behind[::-1], batch_size=4)
    assert [one[key] for one in turned][::-1] == pytest.approx(wanted, rel=1e-5)
    if name == "gpt2":  # logits of a few places at a time
        monkeypatch.setattr(scoring, "LOGITS_AT_A_TIME", 290 * 7)
        scoring._compiled.cache_clear()
        assert [one[key] for one in run.score(texts, behind, batch_size=4)] == pytest.approx(wanted, rel=1e-5)
        scoring._compiled.cache_clear()


def test_greedy_is_what_the_model_would_write(loaded: Run) -> None:
    run, before = loaded("gpt2"), encode(loaded("gpt2"), CONTEXT)
    row, writable = list(before), run.tokenizer.writable
    for _ in range(3):
        logits = log_probs(run, row)[-1]
        row.append(int(np.argmax(np.where(writable, logits[: len(writable)], -np.inf))))
    written, other = row[len(before) :], [*row[len(before) : -1], (row[-1] + 1) % len(writable)]
    queries = [continuation(np.array(before), np.array(ids)) for ids in (written, other)]
    found = token_scores(run.model, run.params, queries, 2, writable)
    assert [one.likeliest.tolist() for one in found] == [[True, True, True], [True, True, False]]


# Choices.


def test_every_way_to_compare_candidates(loaded: Run) -> None:
    run, totals, counts, without = loaded("gpt2"), [], [], []
    for candidate in CANDIDATES:
        for context, found in ((CONTEXT, totals), ("Answer:", without)):
            whole, before = encode(run, context + candidate), encode(run, context)
            assert whole[: len(before)] == before
            found.append(sum(by_hand(run, before, whole[len(before) :])))
        counts.append(len(encode(run, candidate)))
    sizes = np.array([len(candidate) for candidate in CANDIDATES])
    scores = {
        "none": np.array(totals), "tokens": np.array(totals) / counts, "bytes": np.array(totals) / sizes,
        "characters": np.array(totals) / sizes, "unconditional": np.array(totals) - np.array(without),
    }  # fmt: skip
    assert len({int(np.argmax(each)) for each in scores.values()}) > 1  # or it would not matter which
    for normalization, wanted in scores.items():
        found = run.choose(CONTEXT, CANDIDATES, normalization)
        assert found["scores"] == pytest.approx(wanted.tolist(), rel=1e-4), normalization
        shares = np.exp(wanted - wanted.max())
        assert found["probabilities"] == pytest.approx((shares / shares.sum()).tolist(), rel=1e-3, abs=1e-6)
        best = int(np.argmax(wanted))
        assert (found["choice"], found["text"], found["tokens"]) == (best, CANDIDATES[best], counts)
        assert found["probability"] == found["probabilities"][best]
    assert run.choose(CONTEXT, ["é", "e"], "bytes")["scores"][0] * 2 == pytest.approx(
        run.choose(CONTEXT, ["é", "e"], "characters")["scores"][0]
    )
    apart = run.choose(CONTEXT, ["yes", "no"], "unconditional", "A: ")["scores"]
    both = run.score([CONTEXT, "A: "], ["yes", "yes"])
    assert apart[0] == pytest.approx(both[0]["log_likelihood"] - both[1]["log_likelihood"], rel=1e-4)


def test_choices_of_several_contexts_and_of_other_families(loaded: Run) -> None:
    run = loaded("gpt2")
    each = [run.choose(CONTEXT, CANDIDATES), run.choose("Read", CANDIDATES[:2])]
    both = run.choose([CONTEXT, "Read"], [CANDIDATES, CANDIDATES[:2]])
    for one, other in zip(both, each, strict=True):
        assert one["choice"] == other["choice"] and one["scores"] == pytest.approx(other["scores"], rel=1e-5)
    shared = run.choose([CONTEXT, "Read"], CANDIDATES[:2])
    assert shared[1]["scores"] == pytest.approx(each[1]["scores"], rel=1e-5)
    written = loaded("t5")
    wanted = [one["log_likelihood"] for one in written.score(CONTEXT, CANDIDATES)]
    assert written.choose(CONTEXT, CANDIDATES, "none")["scores"] == pytest.approx(wanted, rel=1e-5)
    masked = loaded("bert_masked")
    wanted = [one["pseudo_log_likelihood"] for one in masked.score([TEXT, LONG])]
    assert masked.choose("", [TEXT, LONG], "none")["scores"] == pytest.approx(wanted, rel=1e-5)


# Documents.


@pytest.mark.parametrize(("length", "stride"), [(4, 4), (4, 1), (5, 2), (30, 7), (11, 3), (1, 1)])
def test_windows_predict_every_token_once_with_the_context_that_fits(length: int, stride: int) -> None:
    ids, predicted = np.arange(100, 112), []
    for number, query in enumerate(rolling(ids, length, stride)):
        assert len(query.inputs) <= length and len(query.targets) <= (length if number == 0 else stride)
        assert query.inputs[query.places].tolist() == (query.targets - 1).tolist()  # each from the one before
        first = int(query.targets[0]) - 100
        assert query.prefix == np.flatnonzero(query.inputs == query.targets[0] - 1)[0] + 1
        assert len(query.inputs) == min(length, first - 1 + len(query.targets))  # as far back as fits
        predicted += query.targets.tolist()
    assert predicted == ids[1:].tolist()


def test_a_document_is_its_windows_one_by_one(loaded: Run) -> None:
    run = loaded("gpt2")
    ids = [*special(run, "end"), *encode(run, DOCUMENT)]
    tokens, total = len(ids) - 1, 0.0
    assert tokens > 2 * WIDTH
    for end in range(1, len(ids)):  # each token alone, from the window it is in
        last = 20 if end <= 20 else min(20 + -(-(end - 20) // 6) * 6, tokens)
        row = ids[max(last - 20, 0) : end]
        total += float(log_probs(run, row)[-1, ids[end]])
    found = run.score_document(DOCUMENT, stride=6, length=20)
    words = len(DOCUMENT.split())
    assert (found["tokens"], found["words"], found["lines"], found["characters"]) == (tokens, words, 18, len(DOCUMENT))
    assert found["windows"] == 1 + math.ceil((tokens - 20) / 6) and (found["length"], found["stride"]) == (20, 6)
    assert found["log_likelihood"] == pytest.approx(total, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(-total / tokens), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(-total / (words + 18)), rel=1e-3)
    for unit in ("bits_per_byte", "bits_per_character"):
        assert found[unit] == pytest.approx(-total / math.log(2) / len(DOCUMENT), rel=1e-5)
    short = run.score_document(TEXT)
    assert short["log_likelihood"] == pytest.approx(run.score(TEXT)["log_likelihood"], rel=1e-5)
    assert (short["windows"], short["length"], short["stride"]) == (1, WIDTH, WIDTH)


# What cannot be scored.


def test_what_cannot_be_scored_is_refused_in_one_line(loaded: Run) -> None:
    gpt, masked, t5, label = (loaded(name) for name in ("gpt2", "bert_masked", "t5", "bert_label"))
    long = "Read every line. " * 30
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: gpt.score(""), "text 0: the text is empty"),
        (lambda: gpt.score([CONTEXT, CONTEXT], [" a", ""]), "text 1: the continuation is empty"),
        (lambda: gpt.score(long), r"text 0: \d+ tokens, but the model reads 64 .*score_document"),
        (lambda: gpt.score([CONTEXT] * 2, [" a"] * 3), "2 contexts and 3 continuations"),
        (lambda: masked.score(CONTEXT, CONTINUATION), "no log-likelihood of a continuation; give the whole text"),
        (lambda: masked.score(long), r"\d+ tokens, but the model reads 64 \(model.max_length\); shorten it$"),
        (lambda: masked.score_document(TEXT), "a masked model predicts masked tokens"),
        (lambda: masked.choose(CONTEXT, CANDIDATES), "no log-likelihood of a continuation"),
        (lambda: t5.score(TEXT), "an encoder-decoder .* a context and a continuation"),
        (lambda: t5.score(TEXT, "  "), "the continuation has no token"),
        (lambda: t5.score_document(TEXT), "an encoder-decoder writes in answer"),
        (lambda: label.score(TEXT), "predicts no tokens"),
        (lambda: gpt.choose(CONTEXT, ["a"]), "at least two candidates"),
        (lambda: gpt.choose(CONTEXT, "ab"), "at least two candidates"),
        (lambda: gpt.choose(CONTEXT, ["a", "", "b"]), "candidate 1 is empty"),
        (lambda: gpt.choose(CONTEXT, CANDIDATES, "token"), "normalization: 'token' is not one of .*tokens"),
        (lambda: gpt.choose([CONTEXT], [CANDIDATES] * 2), "1 contexts and 2 lists"),
        (lambda: gpt.score_document(TEXT, stride=65), "stride: 65 must be at least 1 and at most 64"),
        (lambda: gpt.score_document(TEXT, length=65), "length: 65 must be at least 1 and at most 64"),
        (lambda: gpt.score_document(""), "the document is empty"),
    ]  # fmt: skip
    for ask, said in refused:
        with pytest.raises(UserError, match=said) as error:
            ask()
        assert "\n" not in str(error.value)


# The command line.


def test_rows_of_every_kind_in_one_file_that_goes_on(
    folder: Callable[[str], Path], loaded: Run, cli: Cli, tmp_path: Path
) -> None:
    run, rows, out = loaded("gpt2"), tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    given = [
        {"id": "a", "text": TEXT},
        {"context": CONTEXT, "continuation": CONTINUATION},
        {"context": CONTEXT, "choices": CANDIDATES},
        {"choices": {"label": ["A", "B"], "text": CANDIDATES[:2]}, "context": "Read"},
    ] * 6  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    words = ("score", f"--workdir={folder('gpt2')}", f"--input={rows}", f"--output={out}",
             "--config.evaluation.batch_size=1", "--normalization=none")  # fmt: skip
    code, _, err = cli(*words)
    assert code == 0 and "24 answers (in all perplexity" in err, err
    text, found = out.read_bytes(), lines(out.read_text())
    assert [line["index"] for line in found] == list(range(24)) and found[0]["id"] == "a"
    assert found[0]["log_likelihood"] == pytest.approx(run.score(TEXT)["log_likelihood"], rel=1e-5)
    assert found[5]["log_likelihood"] == pytest.approx(run.score(CONTEXT, CONTINUATION)["log_likelihood"], rel=1e-5)
    assert found[2]["scores"] == pytest.approx(run.choose(CONTEXT, CANDIDATES, "none")["scores"], rel=1e-5)
    assert found[3]["text"] in CANDIDATES[:2] and len(found[3]["probabilities"]) == 2
    out.write_bytes(b"".join(text.splitlines(keepends=True)[:11]) + b'{"ind')  # killed
    assert cli(*words)[0] == 0 and out.read_bytes() == text
    code, _, err = cli(*words[:-1], "--normalization=bytes")
    assert code == 2 and "normalization: none -> bytes" in err
    rows.write_text(rows.read_text() + json.dumps({"text": "Read every line. " * 30}) + "\n")
    code, _, err = cli(*words, "--overwrite")
    assert code == 2 and "rows.jsonl:25: " in err and "tokens, but the model reads 64" in err
    assert out.read_bytes() == text  # nothing is lost
    assert cli(*words, "--overwrite", "--skip-malformed=1")[0] == 0
    assert "tokens, but the model reads 64" in lines(out.read_text())[24]["error"]


def test_texts_of_the_command_line_and_columns(
    folder: Callable[[str], Path], loaded: Run, cli: Cli, tmp_path: Path
) -> None:
    run, at = loaded("gpt2"), f"--workdir={folder('gpt2')}"
    code, out, err = cli("score", at, f"--context={CONTEXT}", *CANDIDATES, "--end")
    assert code == 0, err
    wanted = [each["log_likelihood"] for each in run.score(CONTEXT, CANDIDATES, end=True)]
    assert [line["log_likelihood"] for line in lines(out)] == pytest.approx(wanted, rel=1e-5)
    code, out, _ = cli("score", at, f"--context={CONTEXT}", "--choose", *CANDIDATES)
    assert lines(out)[0]["scores"] == pytest.approx(run.choose(CONTEXT, CANDIDATES)["scores"], rel=1e-5)
    code, out, _ = cli("score", at, TEXT, "--per-token")
    assert len(lines(out)[0]["per_token"]) == lines(out)[0]["tokens"] == len(encode(run, TEXT))
    table = tmp_path / "rows.csv"
    table.write_text('context,choices\nRead,"[""a file"", ""it""]"\n')
    code, out, err = cli("score", at, f"--input={table}")
    assert code == 0 and lines(out)[0]["scores"] == pytest.approx(run.choose("Read", ["a file", "it"])["scores"]), err
    for words, said in {
        ("--choose",): "--context and --choose are for TEXTs",
        ("--stride=4", TEXT): "--stride and --length: they are for --document",
        ("--document", "--context=a", TEXT): "--document: it has no context",
        ("--choose", TEXT): "text 0: a choice needs at least two candidates",
    }.items():
        code, _, err = cli("score", at, *words)
        assert code == 2 and said in err and len(err.splitlines()) == 1


def test_a_file_is_one_document_and_rows_are_several(
    folder: Callable[[str], Path], loaded: Run, cli: Cli, tmp_path: Path
) -> None:
    run, at = loaded("gpt2"), f"--workdir={folder('gpt2')}"
    plain, rows = tmp_path / "wiki.raw", tmp_path / "articles.jsonl"
    plain.write_text(DOCUMENT)
    rows.write_text(json.dumps({"text": DOCUMENT}) + "\n" + json.dumps({"text": LONG}) + "\n")
    code, out, err = cli("score", at, "--document", f"--input={plain}", "--stride=16", "--length=32")
    wanted = run.score_document(DOCUMENT, 16, 32)
    assert code == 0 and lines(out) == [{"index": 0} | {k: pytest.approx(v, rel=1e-5) for k, v in wanted.items()}], err
    code, out, err = cli("score", at, "--document", f"--input={rows}", "--stride=16", "--length=32")
    both = [wanted, run.score_document(LONG, 16, 32)]
    assert [each["log_likelihood"] for each in lines(out)] == pytest.approx(
        [e["log_likelihood"] for e in both], rel=1e-5
    )
    total, tokens = (sum(each[key] for each in both) for key in ("log_likelihood", "tokens"))
    told = re.search(r"in all perplexity (\S+) per token; (\S+) per word; (\S+) bits per byte\)", err)
    assert told is not None
    size = len(DOCUMENT + LONG)
    assert float(told[1]) == pytest.approx(math.exp(-total / tokens), rel=1e-3)
    assert float(told[3]) == pytest.approx(-total / math.log(2) / size, rel=1e-3)

"""`jaxformer generate` and its Python form: flags, files, streams, errors, and the same answers on a mesh."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import make_run

import jaxformer
from jaxformer.cli.flags import add_flags, with_flags
from jaxformer.errors import UserError
from jaxformer.generation import Answer, GenerationConfig
from jaxformer.runs import generating

Cli = Callable[..., tuple[int, str, str]]
PROMPTS = [f"{verb} the {thing}." for verb in ("Return", "Open", "Parse the text, then read") for thing in "ab"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_run(name, tmp_path_factory.mktemp("generating") / name, num_layers=1)
        return made[name]

    return get


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> list[GenerationConfig]:
    """Models that answer with their prompt's first tokens, as many as its number; return what they were asked for."""
    asked: list[GenerationConfig] = []

    def generate(
        model: Any, weights: Any, prompts: Any, config: GenerationConfig, rules: Any, numbers: Any, default_length: int
    ) -> list[list[Answer]]:
        asked.append(dataclasses.replace(config, max_new_tokens=config.max_new_tokens or default_length))
        rows = zip(prompts, numbers, strict=True)
        return [[Answer(row[: 1 + n], -1.5 * k, n % 2 == 0) for k in range(config.num_answers)] for row, n in rows]

    monkeypatch.setattr(generating, "generate", generate)
    return asked


def parsed(*words: str, overrides: tuple[str, ...] = ()) -> list[str]:
    parser = argparse.ArgumentParser()
    add_flags(parser, "generation", GenerationConfig)
    return with_flags(parser.parse_args(words), "generation", GenerationConfig, list(overrides))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Flags.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--top-k=40", "--temperature", "0.5"], ["generation.temperature=0.5", "generation.top_k=40"]),
        (["--stop", r"\n", "--stop=a,b"], ["generation.stop=('\\n', 'a,b')"]),
        (["--stop", r"C:\\new"], ["generation.stop=('C:\\\\new',)"]),
        (["--early-stopping"], ["generation.early_stopping=True"]),
        (["--no-early-stopping"], ["generation.early_stopping=False"]),
        (["--choices=yes", "--choices=no"], ["generation.choices=('yes', 'no')"]),
    ],
)
def test_flags_are_overrides_in_short(words: list[str], expected: list[str]) -> None:
    assert parsed(*words) == expected
    assert parsed(*words, overrides=("data.name=text",)) == ["data.name=text", *expected]


def test_every_field_has_a_flag_and_a_help() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, "generation", GenerationConfig)
    text = parser.format_help()
    for field in dataclasses.fields(GenerationConfig):
        assert f"--{field.name.replace('_', '-')}" in text and field.metadata["help"]


def test_flags_reach_the_config_with_their_types(folder: Callable[[str], Path]) -> None:
    run = jaxformer.load(folder("gpt2"), overrides=parsed("--stop", r"\n", "--top-p=0.9", "--temperature=1"))
    assert run.config.generation == GenerationConfig(max_new_tokens=8, stop=("\n",), top_p=0.9, temperature=1.0)


# Answers.


def test_lines_of_json_hold_the_answers(
    folder: Callable[[str], Path], cli: Cli, tmp_path: Path, echo: list[GenerationConfig]
) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps({"id": f"r{n}", "text": text}) + "\n" for n, text in enumerate(PROMPTS)))
    words = ["generate", f"--workdir={folder('gpt2')}", f"--input={source}"]
    code, out, err = cli(*words, f"--output={output}", "--top-k=3", "--temperature=2")
    assert (code, out) == (0, "") and (echo[0].top_k, echo[0].temperature) == (3, 2.0)
    found = rows_of(output)
    assert [row["index"] for row in found] == list(range(6)) and [row["id"] for row in found] == [
        f"r{n}" for n in range(6)
    ]
    assert [row["prompt"] for row in found] == PROMPTS
    assert [(row["tokens"], row["ended"]) for row in found] == [(1 + n, n % 2 == 0) for n in range(6)]
    assert "6 rows (3 of 6 answers not ended; 21 tokens, " in err and "per second)" in err
    code, out, err = cli(*words, "--json", "--num-answers=2", "--temperature=1")
    first = json.loads(out.splitlines()[0])
    assert list(first) == ["index", "id", "prompt", "answers"]
    assert [list(answer.values())[1:] for answer in first["answers"]] == [[0.0, 1, True], [-1.5, 1, True]]


def test_text_is_shown_as_people_read_it(
    folder: Callable[[str], Path], cli: Cli, echo: list[GenerationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", f"--workdir={folder('gpt2')}"]
    run = jaxformer.load(folder("gpt2"))
    starts = [run.tokenizer.decode(run.tokenizer.encode(text)[: 1 + n]) for n, text in enumerate(PROMPTS[:2])]
    assert cli(*words, *PROMPTS[:2])[:2] == (0, "".join(f"{p}{s}\n" for p, s in zip(PROMPTS, starts, strict=False)))
    assert cli(*words, PROMPTS[0], "--num-answers=2", "--temperature=1")[1] == f"{PROMPTS[0]}{starts[0]}\n" * 2
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": __import__("io").BytesIO(PROMPTS[0].encode())}))
    assert cli(*words)[1] == f"{PROMPTS[0]}{starts[0]}\n"
    answer = cli("generate", f"--workdir={folder('t5')}", "Open it.")[1]
    assert answer and not answer.startswith("Open it.")  # an encoder-decoder answers; it does not go on


def test_a_file_goes_on_where_it_was_stopped(
    folder: Callable[[str], Path], cli: Cli, tmp_path: Path, echo: list[GenerationConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, whole, broken = (tmp_path / name for name in ("rows.txt", "whole.jsonl", "broken.jsonl"))
    source.write_text("".join(f"Line {n}.\n" for n in range(150)))
    words = ["generate", f"--workdir={folder('gpt2')}", f"--input={source}", "--config.evaluation.batch_size=1"]
    assert cli(*words, f"--output={whole}")[0] == 0
    answered = generating.generate
    for stop, code, there in ((signal.SIGINT, 130, 64), (signal.SIGTERM, 75, 128)):
        calls = iter(range(40))

        def generate(*given: Any, at: int = stop, calls: Any = calls, **named: Any) -> Any:
            if next(calls) == 8:  # behind a window of eight batches
                os.kill(os.getpid(), at)
            return answered(*given, **named)

        monkeypatch.setattr(generating, "generate", generate)
        ended, _, err = cli(*words, f"--output={broken}")
        assert ended == code and f"{there} of 150 are answered; run the same command to go on" in err
    assert cli(*words, f"--output={broken}")[0] == 0 and broken.read_bytes() == whole.read_bytes()
    code, _, err = cli(*words, f"--output={broken}", "--seed=1")
    assert code == 2 and "generation.seed: 0 -> 1" in err


def test_answers_are_as_long_as_the_targets_of_a_task(
    folder: Callable[[str], Path], echo: list[GenerationConfig]
) -> None:
    run = jaxformer.load(folder("bart"))
    open_length = GenerationConfig()
    run.generate("It rains.", open_length)
    run.generate("It rains.", open_length, max_new_tokens=5)
    jaxformer.load(folder("gpt2")).generate("It", open_length)
    assert [config.max_new_tokens for config in echo] == [16, 5, 64]


def test_an_answer_is_cut_where_it_does_not_fit_and_nobody_asked_for_its_length(tmp_path: Path, cli: Cli) -> None:
    # One stack of 64 places, which has learnt targets of 16 tokens.
    workdir = make_run(
        "gpt2_number", tmp_path / "run", task={"name": "text_to_text", "target_length": 16}, num_layers=1
    )
    run = jaxformer.load(workdir)
    text = "Return the thing. " * 20
    ends = {len(run.prompt_ids(text[:end])): text[:end] for end in range(len(text))}
    source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    # 49 + 16 - 1 = 64; behind 50 there is room for 15, behind 64 for 1.
    source.write_text("".join(json.dumps({"text": ends[length]}) + "\n" for length in (10, 49, 50, 64)))
    words = ["generate", f"--workdir={workdir}", "--config.sharding.data=1"]
    code, _, err = cli(*words, f"--input={source}", f"--output={output}", "--max-new-tokens=0")
    assert code == 0, err
    assert [row["tokens"] for row in rows_of(output)] == [16, 16, 15, 1]
    assert "4 of 4 answers not ended; 2 cut where prompt and answer fill model.max_length 64; 48 tokens" in err
    for shown in ([], ["--stream"]):
        code, _, err = cli(*words, ends[50], *shown, "--max-new-tokens=0")
        assert code == 0 and "1 cut where prompt and answer fill model.max_length 64" in err
        code, out, err = cli(*words, ends[65], *shown, "--max-new-tokens=0")
        assert code == 2 and out == "" and "the prompt: 65 tokens exceed model.max_length 64; shorten it" in err
        code, out, err = cli(*words, ends[50], *shown, "--max-new-tokens=16")
        assert code == 2 and "generation.max_new_tokens 16, but model.max_length 64 has room for 15 behind 50" in err


# Streams.


def test_a_stream_is_the_answer_in_whole_pieces(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = jaxformer.load(folder("gpt2"))
    ids = run.tokenizer.encode("Zürich 🙂 is old.\n\nNew")

    def stream(*given: Any, **named: Any) -> Any:
        for count in range(1, len(ids) + 1):
            yield [[Answer(ids[:count], -1.0, count == len(ids))]]

    monkeypatch.setattr(generating, "stream", stream)
    found = list(run.stream("Return", stop=("\n\n",)))
    assert "".join(found) == "Zürich 🙂 is old." and "\ufffd" not in "".join(found) and len(found) > 5
    assert "".join(run.stream("Return")) == "Zürich 🙂 is old.\n\nNew"
    for changes, key in (({"num_beams": 2}, "num_beams"), ({"num_answers": 2, "temperature": 1.0}, "num_answers")):
        with pytest.raises(UserError, match=rf"generation\.{key}: a text that is shown as it comes"):
            run.stream("Return", **changes)


def test_a_stream_writes_what_generate_does(folder: Callable[[str], Path], cli: Cli) -> None:
    words = ["generate", f"--workdir={folder('gpt2')}", "--temperature=1", *PROMPTS[:2], "--config.sharding.data=1"]
    code, out, err = cli(*words, "--stream")
    assert code == 0 and out == cli(*words)[1] and out.startswith(PROMPTS[0])
    assert "2 of 2 answers not ended; 16 tokens, " in err


# What is refused.


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("gpt2", ["Open", ""], "text 1: the prompt is empty: give at least one token"),
        ("t5", [""], "text 0: the prompt is empty"),
        ("gpt2", ["one " * 80], "text 0: the prompt: "),
        ("gpt2", ["Open", "--max-new-tokens=70"], "room for "),
        ("bert", ["Open"], "`jaxformer fill`"),
        ("bert", ["Open", "--num-beams=2"], "generation.num_beams: beams write text"),
        ("gpt2", ["Open", "--num-beams=1000"], "generation.num_beams: 1000 is more than the 2"),
        ("gpt2", ["Open", "--num-beams=2", "--num-answers=3"], "generation.num_answers: 3 are more than the 2 beams"),
        ("gpt2", ["Open", "--num-answers=3"], "generation.num_answers: without drawing there is one answer"),
        ("gpt2", ["Open", "--num-beams=2", "--temperature=1"], "generation.temperature: 1.0 draws"),
        ("plain", ["Open", "--choices=😀"], "generation.choices: the tokenizer has no tokens for '😀'"),
        ("gpt2", ["Open", "--num-beams=2", "--stream"], "generation.num_beams: a text that is shown as it comes"),
        ("gpt2", ["Open", "--config.sharding.fsdp=16"], "sharding: fsdp 16"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    name: str, words: list[str], said: str, folder: Callable[[str], Path], cli: Cli
) -> None:
    run = folder({"plain": "transformer"}.get(name, name))
    code, out, err = cli("generate", f"--workdir={run}", *words)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_a_field_that_there_is_not_is_named(folder: Callable[[str], Path]) -> None:
    run = jaxformer.load(folder("gpt2"))
    with pytest.raises(UserError, match=r"generation\.temprature: no such key; did you mean 'temperature'\?"):
        run.generate("Open", temprature=0.5)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        run.generate(["Open", ""])


def test_malformed_prompts_may_be_let_pass(
    folder: Callable[[str], Path], cli: Cli, tmp_path: Path, echo: list[GenerationConfig]
) -> None:
    source, output = tmp_path / "rows.txt", tmp_path / "answers.jsonl"
    source.write_text("Open it.\n\nRead it.\n" + "one " * 80 + "\n")
    words = ["generate", f"--workdir={folder('gpt2')}", f"--input={source}", f"--output={output}"]
    code, _, err = cli(*words)
    assert code == 2 and f"{source}:2: the prompt is empty" in err and not output.exists()
    code, _, err = cli(*words, "--skip-malformed=2")
    assert code == 0 and "4 rows (2 malformed; " in err
    found = rows_of(output)
    assert ["error" in row for row in found] == [False, True, False, True]
    assert [row["tokens"] for row in found if "tokens" in row] == [1, 3]  # by their numbers among all rows


# Meshes.


def test_answers_are_the_same_on_a_mesh(folder: Callable[[str], Path]) -> None:
    """Three rows, which two devices do not share equally; parameters lie where `sharding` says."""
    alone = jaxformer.load(folder("gpt2"))
    spread = jaxformer.load(folder("gpt2"), overrides=["sharding.data=1", "sharding.fsdp=2", "sharding.tensor=2"])
    leaf = spread.params["decoder"]["layers"]["feed_forward"]["input"]["kernel"]
    assert alone.model.execution.mesh is None and len(leaf.sharding.device_set) == 4 and not leaf.is_fully_replicated
    found, expected = (run.answers(PROMPTS[:3], temperature=1.0, max_new_tokens=3) for run in (spread, alone))
    for (ours,), (theirs,) in zip(found, expected, strict=True):
        assert ours["text"] == theirs["text"]
        np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4)

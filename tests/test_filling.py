"""Filling masks: candidates against the logits of whole texts, whatever stands beside them; and what is refused."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from runs import make_run
from sampling import sampled
from tiny import model_of, params_of

import jaxformer
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.generation import Masked, fill
from jaxformer.runs.loading import LoadedRun

FILLS = {"bert_masked": "[MASK]", "distilbert": "[MASK]", "bart_masked": "<mask>"}
ASKED = "A {0} the it{0}."
RUNS = Callable[[str], LoadedRun]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> RUNS:
    """Return a function that gives the run of a case, with parameters that tell tokens apart."""
    runs.CASES["bart_masked"] = ("bart_base", "bart", {}, {"objective": {"name": "denoising", "sequence_length": 32}})

    @functools.cache
    def get(name: str) -> LoadedRun:
        return jaxformer.load(make_run(name, tmp_path_factory.mktemp("filling") / name, num_layers=1))

    return get


def probabilities(run: LoadedRun, ids: list[int]) -> np.ndarray:
    """The probability of every token at every place of a text, float64 [S, V], from the logits of all of them: of BART
    the decoder reads </s> and all but the last of what its encoder reads."""
    row = np.array([ids], np.int32)
    arrays = {"segment_ids": np.ones_like(row), "positions": np.arange(row.size, dtype=np.int32)[None]}
    batch = {"inputs": row, **arrays}
    if run.model.config.family == "encoder_decoder":
        end = run.tokenizer.vocabulary.id("end")
        batch = {f"encoder_{name}": array for name, array in batch.items()}
        batch |= {"inputs": np.concatenate([[[end]], row[:, :-1]], axis=1), **arrays}
    logits = np.asarray(_logits(run)(batch)[0], np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@functools.cache
def _cached_logits(model: Any) -> Any:
    return jax.jit(lambda params, batch: model.project(params, model.apply(params, batch)["hidden"]))


def _logits(run: LoadedRun) -> Any:
    return lambda batch: _cached_logits(run.model)(run.params, batch)


def ids_of(run: LoadedRun, text: str) -> list[int]:
    return run.tokenizer.encode(text, special=True, reads="mask").tolist()


def places_of(run: LoadedRun, ids: list[int]) -> list[int]:
    return [place for place, id in enumerate(ids) if id == run.tokenizer.vocabulary.id("mask")]


def numbers(answers: list[dict[str, Any]]) -> list[Any]:
    """The numbers of answers, which rounding may touch."""
    return [pytest.approx([each["score"] for each in mask], abs=1e-6) for answer in answers for mask in answer["masks"]]


def without_numbers(answers: list[dict[str, Any]]) -> list[Any]:
    return [
        answer | {"masks": [[each | {"score": 0} for each in mask] for mask in answer["masks"]]} for answer in answers
    ]


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    return without_numbers(found) == without_numbers(wanted) and numbers(found) == [
        [each["score"] for each in mask] for answer in wanted for mask in answer["masks"]
    ]


@pytest.mark.parametrize("name", sampled(FILLS, path=str, daily=["bert_masked", "bart_masked"]))
def test_candidates_are_those_of_the_whole_logits(name: str, loaded: RUNS) -> None:
    run = loaded(name)
    text = ASKED.format(FILLS[name])
    ids = ids_of(run, text)
    places = places_of(run, ids)
    assert len(places) == 2
    (answer,) = run.fill(text, top=7)
    expected = probabilities(run, ids)
    for place, candidates in zip(places, answer["masks"], strict=True):
        order = np.argsort(-expected[place], kind="stable")[:7]
        assert [each["token"] for each in candidates] == order.tolist()
        assert [each["score"] for each in candidates] == pytest.approx(expected[place][order].tolist(), abs=1e-6)
        assert [each["token_str"] for each in candidates] == [
            run.tokenizer.decode([id], skip_special=False) for id in order
        ]
        assert len({round(each["score"], 7) for each in candidates}) == 7  # or the order would tell nothing
    assert answer["masks"][0] != answer["masks"][1] and answer["prompt"] == text
    # Each mask filled alone, and all with their likeliest token.
    whole = list(ids)
    for number, place in enumerate(places):
        # The likeliest token that is no special one, which would not be shown.
        chosen = next(
            each for each in answer["masks"][number] if not run.tokenizer.vocabulary.is_special[each["token"]]
        )
        filled = [chosen["token"] if each == place else id for each, id in enumerate(ids)]
        assert chosen["sequence"] == run.tokenizer.decode(filled[1:-1], skip_special=False)
        whole[place] = answer["masks"][number][0]["token"]
    assert answer["text"] == run.tokenizer.decode(whole)
    assert len(run.fill(text)[0]["masks"][0]) == 5


def test_texts_are_spelled_out(loaded: RUNS) -> None:
    run = loaded("bert_masked")
    (one, two) = run.fill(["Open the [MASK].", "The [MASK] of the [MASK]."], targets=["of", "thread"])
    (only,) = one["masks"]
    assert {each["sequence"] for each in only} == {"open the of.", "open the thread."}
    assert {each["token_str"] for each in only} == {"of", "thread"}
    assert one["text"] == only[0]["sequence"]
    assert {each["sequence"] for each in two["masks"][1]} == {"the [MASK] of the of.", "the [MASK] of the thread."}
    first, second = (of_mask[0]["token_str"] for of_mask in two["masks"])
    assert two["text"] == f"the {first} of the {second}."


@pytest.mark.parametrize("name", sampled(["bert_masked", "bart_masked"], path=str, daily=["bert_masked"]))
def test_neighbours_padding_and_order_change_nothing(name: str, loaded: RUNS) -> None:
    run, mask = loaded(name), FILLS[name]
    texts = [f"{mask} {'it ' * count}{mask if count % 2 else ''} the{mask}" for count in (3, 0, 16, 1, 4, 2, 7)]
    alone = [run.fill(text)[0] for text in texts]
    assert same(run.fill(texts, batch_size=8), alone)
    assert same(run.fill(texts[::-1], batch_size=8), alone[::-1])
    assert len({answer["masks"][0][0]["score"] for answer in alone}) == len(texts)
    assert run.fill([]) == []


def test_targets_have_their_probabilities_among_all_tokens(loaded: RUNS) -> None:
    run = loaded("bert_masked")
    vocabulary = run.tokenizer.backend.get_vocab()
    words = ["of", "the", "Thread", "thread", "##e", "a", "of", "has", "file"]
    known = sorted({vocabulary[word] for word in ("of", "the", "thread", "##e", "a", "has")})
    with pytest.raises(UserError, match=r"^targets: 'file' is 2 tokens \(fil ##e\); a mask is filled with one token"):
        run.fill("A [MASK].", targets=words)
    expected = probabilities(run, ids_of(run, "A [MASK]."))[2]
    (answer,) = run.fill("A [MASK].", targets=words[:-1])
    found = {each["token"]: each["score"] for each in answer["masks"][0]}
    assert sorted(found) == known  # all of them, more than five, and each once
    assert found == pytest.approx({id: expected[id] for id in known}, abs=1e-6)
    scores = [each["score"] for each in answer["masks"][0]]
    assert scores == sorted(scores, reverse=True) and sum(scores) < 0.5
    assert same(
        run.fill("A [MASK].", top=2, targets=words[:-1]),
        [answer | {"masks": [answer["masks"][0][:2]]}],
    )
    assert [each["token_str"] for each in run.fill("A [MASK].", targets="of")[0]["masks"][0]] == ["of"]


def test_a_target_is_the_token_that_belongs_there(loaded: RUNS) -> None:
    """Of BART's vocabulary, a mask takes the space before it with it, and so does the word that stands there."""
    run = loaded("bart_masked")
    ids = run.tokenizer.backend.get_vocab()
    assert set(ids) & {"it", "Ġit", "has", "Ġhas"} == {"it", "Ġit", "has"}
    found = run.fill("Wait <mask> <mask>it<mask>", targets=["it"])[0]["masks"]
    assert [of_mask[0]["token"] for of_mask in found] == [ids["Ġit"], ids["Ġit"], ids["it"]]
    assert run.fill("<mask> it", targets=["it"])[0]["masks"][0][0]["token"] == ids["it"]
    # Where a vocabulary has one of the two alone, it is that one; and a token may be named by its spelling.
    for word, id in {"has": ids["has"], "Ġit": ids["Ġit"], " it": ids["Ġit"]}.items():
        assert run.fill("Wait <mask>", targets=[word])[0]["masks"][0][0]["token"] == id


def test_masks_filled_one_by_one_begin_with_the_most_certain(loaded: RUNS) -> None:
    run = loaded("bert_masked")
    texts = ["[MASK] the [MASK] it [MASK]", "The the [MASK] it."]
    found = run.fill(texts, one_by_one=True, top=6)
    apart = run.fill(texts, top=6)
    for text, answer, other in zip(texts, found, apart, strict=True):
        ids = ids_of(run, text)
        places = left = places_of(run, ids)
        while left:
            expected = probabilities(run, ids)
            place = max(left, key=lambda place: expected[place].max())
            candidates = answer["masks"][places.index(place)]
            order = np.argsort(-expected[place], kind="stable")[:6]
            assert [each["token"] for each in candidates] == order.tolist()
            assert [each["score"] for each in candidates] == pytest.approx(expected[place][order].tolist(), abs=1e-6)
            ids[place] = int(order[0])
            left = [each for each in left if each != place]
        assert answer["text"] == run.tokenizer.decode(ids)
        assert same([answer], [other]) == (len(places) == 1)


def test_only_tokens_of_a_set_fill_a_place() -> None:
    """A model whose table has more rows than the vocabulary, two sets, and more candidates than one of them has."""
    model = model_of("bert")
    params = params_of(model)
    allowed = np.zeros((2, 30), bool)
    allowed[0, [3, 4, 29]] = True
    allowed[1] = True
    texts = [Masked(np.array([5, 1, 6], np.int32), [1], [0]), Masked(np.array([9, 1, 1, 2], np.int32), [1, 2], [1, 0])]
    (first,), (second, third) = fill(model, params, texts, top=5, allowed=allowed)
    assert sorted(first.ids) == sorted(third.ids) == [3, 4, 29]
    assert len(second.ids) == 5 and len(set(second.ids)) == 5
    assert all((np.diff(each.probabilities) < 0).all() for each in (first, second, third))
    assert fill(model, params, [], top=5, allowed=allowed) == []


# What cannot be filled.


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bert_masked", "The lock.", "text 1: there is no mask in it; write [MASK] where a token is to be filled in"),
        ("bert_masked", "", "text 1: there is no mask in it; write [MASK]"),
        ("bert_masked", "The <mask>.", "text 1: <mask> is no mask of this run's tokenizer; write [MASK] where"),
        ("distilbert", "The [mask].", "text 1: [mask] is no mask of this run's tokenizer; write [MASK] where"),
        ("bart_masked", "The [MASK].", "text 1: [MASK] is no mask of this run's tokenizer; write <mask> where"),
        ("bart_masked", "<extra_id_0>", "text 1: <extra_id_0> is no mask of this run's tokenizer; write <mask> where"),
        ("bert_masked", "[MASK] " * 63, "text 1: 65 tokens, those around it included, and the model reads 64"),
    ],
)
def test_texts_that_cannot_be_filled_are_named(name: str, text: str, said: str, loaded: RUNS) -> None:
    with pytest.raises(UserError) as caught:
        loaded(name).fill([f"A {FILLS[name]}.", text])
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_text_may_be_as_long_as_the_model_reads_and_all_tokens_be_asked_for(loaded: RUNS) -> None:
    (answer,) = loaded("bert_masked").fill("[MASK] " * 62, top=100)
    assert [len(of_mask) for of_mask in answer["masks"]] == [100] * 62
    assert sum(each["score"] for each in answer["masks"][61]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt2", r"a decoder_only model fills no masks.*`jaxformer generate` lets it go on"),
        ("t5", r"this run has learnt span_corruption, in which nothing is filled into masks; `jaxformer generate`"),
        ("bart", r"this run has learnt text_to_text, in which nothing is filled into masks"),
        ("bert_label", r"this run has learnt a task, classification, and its model has no vocabulary.*predict"),
    ],
)
def test_a_run_that_fills_no_masks_says_why(name: str, said: str, loaded: RUNS) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        loaded(name).fill("The [MASK] of the <mask>.")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"top": 0}, "top: 0 must be at least 1"),
        ({"top": 101}, "top: 101 candidates, but the vocabulary has 100 tokens; ask for fewer"),
        (
            {"targets": ["the", "files", "☃"]},
            "targets: 'files' is 3 tokens (fil ##e ##s); '☃' is not in the vocabulary;",
        ),
    ],
)
def test_candidates_that_there_are_not_are_refused(asked: dict[str, Any], said: str, loaded: RUNS) -> None:
    with pytest.raises(UserError) as caught:
        loaded("bert_masked").fill("The [MASK].", **asked)
    assert str(caught.value).startswith(said)


# The command line.

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(loaded: RUNS, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> Cli:
    folder = Path(tmp_path_factory.getbasetemp())

    def run(name: str, *words: str | Path) -> tuple[int, str, str]:
        loaded(name)
        (workdir,) = folder.glob(f"filling*/{name}")
        code = main(["fill", f"--workdir={workdir}", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_a_person_reads_a_block_for_each_text(cli: Cli, loaded: RUNS) -> None:
    texts = ["Open the [MASK].", "The [MASK] of the [MASK]."]
    one, two = loaded("bert_masked").fill(texts, top=6)
    code, out, err = cli("bert_masked", *texts, "--top=6")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 1 + 6 + 1 + 2 * 6 + 1)
    assert lines[0] == texts[0] and lines[7] == texts[1]
    for line, each in zip(lines[1:7], one["masks"][0], strict=True):
        assert line.split() == [f"{each['score']:.4f}", each["token_str"], *each["sequence"].split()]
    assert lines[8].startswith("  mask 1  0.") and lines[9].startswith("          0.")
    assert lines[14].startswith(f"  mask 2  {two['masks'][1][0]['score']:.4f}  ")
    assert lines[20] == f"  all     {two['text']}"


def test_lines_of_json_hold_what_python_gives(cli: Cli, loaded: RUNS, tmp_path: Path) -> None:
    texts = ["The [MASK] it.", "[MASK] the [MASK] it [MASK]"]
    asked = {"targets": ["it", "the", "has"], "top": 2, "one_by_one": True}
    wanted = loaded("bert_masked").fill(texts, **asked)
    words = ["--targets=it,the,has", "--top=2", "--one-by-one"]
    code, out, _ = cli("bert_masked", *texts, *words, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line.pop("index") for line in found] == [0, 1] and same(found, wanted)
    # The same of a file, whose rows have names; begun again it goes on, and not with other settings.
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": f"n{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    code, out, err = cli("bert_masked", f"--input={source}", f"--output={output}", *words)
    assert (code, out) == (0, "") and "2 texts" in err
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line.pop("index"), line.pop("id")) for line in found] == [(0, "n0"), (1, "n1")] and same(found, wanted)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert cli("bert_masked", f"--input={source}", f"--output={output}", *words)[0] == 0
    assert output.read_bytes() == whole
    code, _, err = cli("bert_masked", f"--input={source}", f"--output={output}", "--top=3", *words[::2])
    assert code == 2 and "top: 2 -> 3" in err


def test_what_the_command_refuses_is_one_line(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("The [MASK] it.\nThe <mask> it.\nThe [MASK] it.\n")
    for words, said in (
        (["A [MASK].", "No."], "text 1: there is no mask in it; write [MASK]"),
        ([f"--input={source}"], f"{source}:2: <mask> is no mask of this run's tokenizer; write [MASK]"),
        (["A [MASK].", "--targets=file"], "targets: 'file' is 2 tokens (fil ##e)"),
        (["A [MASK].", "--top=0"], "top: 0 must be at least 1"),
    ):
        code, out, err = cli("bert_masked", *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"jaxformer fill: {said}")
    code, out, _ = cli("bert_masked", f"--input={source}", "--skip-malformed=1", "--targets=it")
    assert code == 0 and out.splitlines()[2].startswith(f"{source}:2: <mask> is no mask")
    code, out, err = cli("gpt2", "A <mask>.")
    assert (code, out, err.count("\n")) == (2, "", 1) and "fills no masks" in err

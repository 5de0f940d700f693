"""Objective x family: every allowed pair trains, every forbidden one is refused with its reason."""

import io
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import carrier
from rich.console import Console
from sampling import sampled
from shown import Verb, verb

from jaxformer import config as configs
from jaxformer.data.batches import train_batches
from jaxformer.data.preparing import corpus_tokenizer, prepare
from jaxformer.devices.sharding import make_mesh, place
from jaxformer.errors import UserError
from jaxformer.explain import compatibility
from jaxformer.models.config import FAMILIES
from jaxformer.objectives import NOT_PROVIDED, OBJECTIVES
from jaxformer.runs.learner import step_settings
from jaxformer.runs.loading import bind, build_model
from jaxformer.tokenizers import Unigram, train_tokenizer
from jaxformer.training.compiled import compiled_steps

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {"decoder_only": "gpt2_124m", "encoder_only": "bert_base", "encoder_decoder": "t5_base"}
SIZES = {"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_layers": 1, "max_length": 64, "vocab_size": 160}
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout", "final_dropout"), 0.0)
# Lengths for which all objectives of a family emit arrays of the same shapes: they share one compiled step.
T5 = {"sequence_length": 32, "max_target_length": 32, "z_loss": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "causal_lm": {"sequence_length": 63},
    "masked_lm": {"sequence_length": 63, "max_predictions": 9},
    "parallel_text": {"source_length": 32, "target_length": 32},
    "mixture": {"members": ({"name": "bert_style", **T5}, {"name": "drop_tokens", "weight": 2.0, **T5})},
} | {name: T5 for name, kind in OBJECTIVES.items() if hasattr(kind, "max_target_length")}
OF_FAMILY: dict[tuple[str, str], dict[str, Any]] = {
    ("prefix_lm", "decoder_only"): {"sequence_length": 63, "z_loss": 0.0},
    ("causal_lm", "encoder_only"): {"sequence_length": 63},
    ("mixture", "encoder_only"): {
        "members": [
            {"name": "masked_lm", "sequence_length": 63, "max_predictions": 9, "next_sentence": False},
            {"name": "masked_lm", "sequence_length": 47, "max_predictions": 6, "next_sentence": False},
        ]
    },
}
PAIRS = list(itertools.product(OBJECTIVES, FAMILIES))
# Whole runs of a causal_lm are what most tests of runs train.
OWN = (("masked_lm", "encoder_only"), ("span_corruption", "encoder_decoder"))
ALLOWED = [(name, family) for name, family in PAIRS if family in OBJECTIVES[name].families]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of few words, as documents and as pairs, and tokenizers that have every special token."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)

    def sentence() -> str:
        return f"The {draw.choice(['cat', 'dog', 'bird'])} and the {draw.choice(['lock', 'door'])} came."

    documents = [" ".join(sentence() for _ in range(draw.randint(4, 9))) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    pairs = [{"source": sentence(), "target": sentence().upper()} for _ in range(200)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = train_tokenizer(Unigram(vocab_size=130, num_sentinels=40), [*documents, *(p["target"] for p in pairs)])
    tokenizer.backend.add_special_tokens(["<mask>", "<s>"])
    tokenizer.save(folder / "unigram.json")
    return folder


def config_of(name: str, family: str, corpus: Path, visibility: str) -> configs.Config:
    data: dict[str, Any] = {"name": "text", "path": str(corpus / "text.txt")}
    if name == "parallel_text":
        data = {"name": "json_lines", "path": str(corpus / "pairs.jsonl")}
    tokenizer: dict[str, Any] = {"name": "file", "path": str(corpus / "unigram.json")}
    if family == "encoder_only":
        tokenizer = {"name": "wordpiece", "vocab_size": 120}
    sections = {
        "model": {"preset": PRESETS[family], **SIZES, **NO_DROPOUT, "visibility": visibility},
        "objective": {"name": name} | OF_FAMILY.get((name, family), SETTINGS.get(name, {"sequence_length": 32})),
        "tokenizer": tokenizer,
        "data": data,
        "optimizer": {"name": "adamw", "learning_rate": 0.02, "schedule": "constant"},
        "training": {"num_steps": 25, "batch_size": 16, "unroll_layers": 1},
        "sharding": {"data": 1},
    }
    return configs.resolve(sections, name=f"{name} on {family}")


def visibility_of(name: str, family: str) -> str:
    if family == "encoder_only":
        return "causal" if name == "causal_lm" else "full"
    return "prefix" if family == "decoder_only" and name != "causal_lm" else "causal"


def path_of(name: str, family: str) -> str:
    """Objectives of one module share what makes their rows, wherever they train."""
    return OBJECTIVES[name].__module__


@pytest.mark.parametrize(("name", "family"), sampled(ALLOWED, path_of, daily=OWN, ci=[("causal_lm", "encoder_only")]))
def test_an_allowed_pair_trains_and_its_loss_falls(name: str, family: str, corpus: Path) -> None:
    config = config_of(name, family, corpus, visibility_of(name, family))
    tokenizer = corpus_tokenizer(config.tokenizer, config.data, config.supervision)
    supervision = bind(config, tokenizer, ())
    members = prepare(config.data, supervision, tokenizer, "train", seed=0)
    mesh = make_mesh(config.sharding, {"batch": 16})
    settings = step_settings(config, supervision, config.phases[-1])
    steps = compiled_steps(build_model(config, supervision), settings, mesh)
    state, losses = steps.make_state(jax.random.key(0)), []
    batches = train_batches(members, seed=0, batch_size=16)
    for batch in itertools.islice(batches, config.training.num_steps):
        state, metrics = steps.train_step(state, place(mesh, batch), jax.random.key(1), 0.02)
        losses.append(float(metrics.get("tokens_loss", metrics["loss"])))
    batches.close()
    assert np.mean(losses[-3:]) < 0.8 * losses[0], losses


def test_every_pair_is_either_allowed_or_refused_for_a_reason() -> None:
    for name, kind in OBJECTIVES.items():
        assert kind.name == name and kind.paper
        assert set(kind.families) | set(kind.refusals) == set(FAMILIES)
        assert not set(kind.families) & set(kind.refusals) and all(kind.refusals.values())
    assert all(paper and reason for paper, reason in NOT_PROVIDED.values())


@pytest.mark.parametrize(("name", "family"), [pair for pair in PAIRS if pair not in ALLOWED])
def test_a_forbidden_pair_is_refused_with_the_reason(name: str, family: str, corpus: Path) -> None:
    with pytest.raises(UserError) as caught:
        config_of(name, family, corpus, "full" if family == "encoder_only" else "causal")
    message = str(caught.value)
    assert name in message and family in message and OBJECTIVES[name].refusals[family] in message
    assert "\n" not in message


# The table in words.


@pytest.fixture
def objectives(capsys: pytest.CaptureFixture[str]) -> Verb:
    return verb(capsys)


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


@pytest.mark.parametrize(("name", "family"), [pair for pair in PAIRS if pair not in ALLOWED])
def test_the_reason_is_that_of_the_error(name: str, family: str) -> None:
    (entry,) = [entry for entry in compatibility.entries() if entry["name"] == name]
    with pytest.raises(UserError, match=re.escape(entry["families"][family])):
        OBJECTIVES[name]().for_model(carrier(family, "causal"))


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
        "import sys\nfrom jaxformer.cli.main import main\nmain(['objectives'])\nmain(['objectives', '--json'])\n"
        "print(*{'jax', 'flax', 'grain', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "\n")


def markdown_table() -> str:
    """Return the table and the reasons as the README has them."""
    lines = [
        f"| objective | {' | '.join(family.replace('_', '-') for family in FAMILIES)} | paper |",
        f"| --- |{' :-: |' * len(FAMILIES)} --- |",
    ]
    for name, kind in OBJECTIVES.items():
        marks = " | ".join(mark.replace("*", r"\*") for mark in compatibility.marks(kind).values())
        lines.append(f"| `{name}` | {marks} | {kind.paper} |")
    lines += ["", compatibility.IN_ONE_ROW.replace("*", r"\*", 1) + ". What is not possible, and why:", ""]
    lines += [
        f"- {family.replace('_', '-')}: {reason} ({', '.join(f'`{name}`' for name in names)})"
        for (family, reason), names in compatibility.refusals().items()
    ]
    lines += [f"- not provided: {name}, {paper}: {reason}" for name, (paper, reason) in NOT_PROVIDED.items()]
    return "\n".join(lines) + "\n"


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- objectives -->\n(.*)<!-- /objectives -->", readme, re.DOTALL)
    assert table == markdown_table()


# Visibility.


@pytest.mark.parametrize(
    ("name", "family", "visibility", "message"),
    [
        ("causal_lm", "encoder_only", "full", "sees what it predicts; set model.visibility=causal"),
        ("prefix_lm", "decoder_only", "causal", "set model.visibility=prefix"),
        ("masked_lm", "encoder_only", "prefix", "masked_lm has no prefix"),
        ("masked_lm", "encoder_only", "causal", "objective.next_sentence: it is read at"),
    ],
)
def test_a_visibility_that_cannot_work_is_refused(
    name: str, family: str, visibility: str, message: str, corpus: Path
) -> None:
    with pytest.raises(UserError, match=message):
        config_of(name, family, corpus, visibility)

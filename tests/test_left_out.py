"""What is left out of the data or cut: counted, the same at every start, said, and shown on the page."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import make_run, tokenizer_of

from jaxformer import config as configs
from jaxformer.data import left_out_of, prepare
from jaxformer.data.files import JSONLines, Text
from jaxformer.data.left_out import LeftOut, total
from jaxformer.data.store import build_examples, build_store
from jaxformer.errors import UserError
from jaxformer.report import write_report
from jaxformer.runs.data import prepare_data
from jaxformer.tables import counted
from jaxformer.tasks import TASKS

MALFORMED = "rows left out: malformed"
BAD = ['{"text": "cut', "[1]", '{"txt": "other"}', '{"text": 3}', b'{"text": "\xe9"}', '{"text": null}']


def mixed(folder: Path, good: int = 40) -> Path:
    """Write `good` rows, and a malformed one after every sixth."""
    lines: list[bytes] = []
    for number in range(good):
        lines.append(json.dumps({"text": f"text {number}", "label": str(number % 2)}).encode())
        if number % 6 == 5 and number // 6 < len(BAD):
            bad = BAD[number // 6]
            lines.append(bad if isinstance(bad, bytes) else bad.encode())
    path = folder / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def test_malformed_rows_are_left_out_as_far_as_allowed(tmp_path: Path) -> None:
    source = JSONLines(path=str(mixed(tmp_path)), skip_malformed=len(BAD), validation_share=0.3)
    counts: dict[str, LeftOut] = {"train": {}, "validation": {}}
    found = [text for split, left_out in counts.items() for text in source.documents(split, left_out)]
    assert sorted(found) == sorted(f"text {number}" for number in range(40))
    assert all(counts.values())  # some in each
    assert total(counts.values()) == {MALFORMED: {"count": 6, "of": 46}}
    examples = [example for split in counts for example in source.examples(split, ("text",))]
    assert len(examples) == 40 and source.label_names() == ("0", "1")


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(("allowed", "line"), [(0, None), (1, 14), (3, 28), (5, 42)])
def test_one_malformed_row_more_is_named_in_every_split(
    allowed: int, line: int | None, split: str, tmp_path: Path
) -> None:
    source = JSONLines(path=str(mixed(tmp_path)), skip_malformed=allowed, validation_share=0.3)
    with pytest.raises(UserError) as caught:
        list(source.documents(split))
    if line:
        assert str(caught.value).startswith(f"{tmp_path}/a.jsonl:{line}: ")
        assert f"left out {allowed} before it" in str(caught.value)
    with pytest.raises(UserError, match="data.skip_malformed: -1"):
        JSONLines(path="a", skip_malformed=-1)


def test_rows_keep_their_split_when_a_malformed_one_is_mended(tmp_path: Path) -> None:
    path = mixed(tmp_path)
    before = set(JSONLines(path=str(path), skip_malformed=6, validation_share=0.3).documents("validation"))
    path.write_bytes(path.read_bytes().replace(b"[1]", b'{"text": "new"}'))
    after = set(JSONLines(path=str(path), skip_malformed=5, validation_share=0.3).documents("validation"))
    assert after - {"new"} == before


def test_a_store_tells_again_what_was_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("queue", "", " \n", "lock")) + "broken\n")
    source = JSONLines(path=str(path), skip_malformed=1, validation_share=1e-12)
    stores = [build_store(source, "train", tokenizer_of("wordpiece"), tmp_path) for _ in range(2)]
    expected = {MALFORMED: {"count": 1, "of": 5}, "documents left out: empty": {"count": 2, "of": 4}}
    assert [store.left_out for store in stores] == [expected, expected]


@pytest.mark.parametrize(("text", "unknown"), [("queue " * 60 + "日 本", 2), ("queue " * 250 + "日 本", 0)])
def test_more_than_a_hundredth_of_unknown_tokens_is_counted(text: str, unknown: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    tokenizer = tokenizer_of("wordpiece")
    store = build_store(Text(path=str(tmp_path / "a.txt"), validation_share=1e-12), "train", tokenizer, tmp_path)
    counts = store.left_out.get("tokens unknown to the tokenizer, all written as one", {"count": 0, "of": 0})
    if unknown:
        is_unknown = store.tokens == tokenizer.vocabulary.id("unknown")
        assert counts == {"count": is_unknown.sum(), "of": len(store.tokens)} and counts["count"] >= unknown
    else:
        assert counts["count"] == 0


@pytest.mark.parametrize("fields", [("a",), ("a", "b")], ids=["text", "pair"])
@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [("decoder_only", "bpe"), ("encoder_only", "wordpiece"), ("encoder_decoder", "plain"), ("", "plain")],
)  # fmt: skip
def test_examples_that_a_task_cuts_are_counted(
    family: str, tokenizer: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    made = tokenizer_of(tokenizer)
    texts = [("the file " * n, "lock " * (n // 3)) for n in range(1, 13)]
    rows = "".join(json.dumps({"a": a, "b": b, "label": "open"}) + "\n" for a, b in texts)
    (tmp_path / "a.jsonl").write_text(rows)
    source = JSONLines(path=str(tmp_path / "a.jsonl"), validation_share=1e-12)
    keys = {"text_fields": fields, "family": family}
    if not family:
        keys = {"input": " ".join(f"{{{field}}}" for field in fields)}

    def bound(length: int) -> Any:
        task = TASKS["classification" if family else "text_to_text"](sequence_length=length, **keys)  # type: ignore[call-arg]
        return task.bind(made.vocabulary, ("open",), made.encode, made.decode)

    task = bound(24)
    members = prepare(source, task, made, "train", seed=0, cache=tmp_path)
    ((what, counts),) = left_out_of(members).items()
    # As the arrays have it: with room for everything no token is missing, and in this task some are.
    wide = bound(400)
    side = "encoder_segment_ids" if "encoder_segment_ids" in wide.shapes else "segment_ids"
    rng = np.random.default_rng(0)
    examples = build_examples(source, "train", made, task, tmp_path)
    cut = sum(wide(examples[n], rng)[side].sum() > task(examples[n], rng)[side].sum() for n in range(len(examples)))
    assert what == f"examples cut to {task.room} tokens of text"
    assert counts == {"count": cut, "of": 12} and 0 < cut < 12
    assert left_out_of(prepare(source, wide, made, "train", seed=0, cache=tmp_path)) == {}


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: Any) -> None:
        self.lines.append(str(text))

    def progress(self, *_: Any) -> None:
        pass


def pairs_config(path: Path, share: float) -> Any:
    overrides = [f"data.path={path}", f"data.validation_share={share}", "data.name=json_lines"]
    overrides += ["objective.source_length=8", "objective.target_length=8", "tokenizer.vocab_size=60"]
    overrides += ["objective.source_field=source", "objective.target_field=target"]
    return configs.load("transformer:smoke", overrides)


@pytest.mark.parametrize("share", [1e-12, 0.3])
def test_pairs_that_vanish_are_said_and_recorded_at_every_start(share: float, tmp_path: Path) -> None:
    long, short = {"source": "go on " * 30, "target": "geh"}, {"source": "go", "target": "geh"}
    # With 0.3 no held-out pair fits.
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"source": str(number)}) + "\n" for number in range(60)))
    source = JSONLines(path=str(tmp_path / "a.jsonl"), validation_share=0.3)
    trained = list(map(int, source.texts("train", ("source",))))
    rows = [short if number in trained[:3] else long for number in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes.txt").write_text("mine")
    config = pairs_config(tmp_path, share)
    for _ in range(2):
        notes = Notes()
        opened: Any = SimpleNamespace(
            config=config, folder=tmp_path / "run", workdir=tmp_path / "run", resumes=False, display=notes,
            allows_change=False,
        )  # fmt: skip
        data = prepare_data(opened)
        what = "pairs left out: longer than 8 and 8 tokens, end tokens counted"
        assert total(data.left_out.values())[what] == {"count": 57, "of": 60}
        assert data.left_out["files"] == {"files left out: .txt": {"count": 1, "of": 2}}
        assert any(f"57 of 60 {what}" in line for line in notes.lines)
        assert "files: 1 of 2 files left out: .txt" in notes.lines
        assert [len(member.rows.index["pair"]) for member in data.training[0]] == [3]


def test_a_split_of_which_all_vanishes_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"source": "go on " * 30, "target": "geh"}) + "\n") * 9)
    opened: Any = SimpleNamespace(
        config=pairs_config(tmp_path, 1e-12), folder=tmp_path / "run", workdir=tmp_path / "run", resumes=False,
        display=Notes(), allows_change=False,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"\(9 of 9 pairs left out: longer than 8 and 8 tokens"):
        prepare_data(opened)


def test_counts_of_several_parts_are_summed_and_each_is_told() -> None:
    left_out = {
        "files": {"files left out: .md": {"count": 1, "of": 4}},
        "train": {"pairs": {"count": 1000, "of": 2000}, "rows": {"count": 1, "of": 9}},
        "validation": {"pairs": {"count": 7, "of": 10}},
    }
    assert counted(left_out) == [
        "files: 1 of 4 files left out: .md",
        "train and validation: 1,007 of 2,010 pairs (1,000 of 2,000, 7 of 10)",
        "train: 1 of 9 rows",
    ]
    assert counted({"train": {}}) == []


def test_the_page_shows_what_was_left_out(tmp_path: Path) -> None:
    run = make_run("gpt", tmp_path / "run")
    without = write_report([run], tmp_path / "without").read_text()
    record = json.loads((run / "config.json").read_text())
    record["left_out"] = {"train": {"pairs left out: too long": {"count": 57, "of": 60}}}
    (run / "config.json").write_text(json.dumps(record))
    page = write_report([run], tmp_path / "with").read_text()
    assert "57 of 60 pairs left out: too long" in page
    assert "Left out or cut" in page and "Left out or cut" not in without

"""Masks filled against the pipeline of the reference, live: needs torch and transformers (`make test-reference`)."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; make test-reference installs it")
transformers = pytest.importorskip("transformers")

import runs  # noqa: E402

import jaxformer  # noqa: E402
from jaxformer.interop import export_run, import_run  # noqa: E402

pytestmark = pytest.mark.slow
torch.set_num_threads(1)  # the models are tiny, and other processes use the cores

BART = ("bart_base", "bart", {}, {"objective": {"name": "denoising", "sequence_length": 32}})
TEXTS = ["The {0} of it.", "A {0} may{0} until the thread has {0} it", "{0}", "Open it and read{0}", "{0}{0} the"]


def without_ends(text: str) -> str:
    """A text in which other masks are shown, without the tokens around it, which they show and we do not: a piece of a
    word that comes first is written onto them, and there is a space behind them."""
    for spelling in ("[CLS]", "[SEP]", "<s>", "</s>", "##"):
        text = text.replace(spelling, "")
    return text.strip()


@pytest.mark.parametrize("name", ["bert_masked", "bert", "distilbert", "bart_masked"])
def test_candidates_are_those_of_their_pipeline(name: str, tmp_path: Path) -> None:
    runs.CASES["bart_masked"] = BART
    export_run(runs.make_run(name, tmp_path / "run"), tmp_path / "hf")
    import_run(str(tmp_path / "hf"), tmp_path / "imported")
    run = jaxformer.load(tmp_path / "imported")
    mask = "<mask>" if name == "bart_masked" else "[MASK]"
    texts = [text.format(mask) for text in TEXTS]
    pipeline = transformers.pipeline("fill-mask", model=str(tmp_path / "hf"), device="cpu")
    compared = 0
    for asked, theirs in (
        ({"top": 9}, {"top_k": 9}),
        ({"targets": ["it", "has", "a"]}, {"targets": ["it", "has", "a"]}),
    ):
        if "targets" in asked and name == "bart_masked":
            continue  # theirs reads a word that stands behind a space as one that does not
        for text, answer in zip(texts, run.fill(texts, **asked), strict=True):  # type: ignore[arg-type]
            wanted: Any = pipeline(text, **theirs)
            several = isinstance(wanted[0], list)
            for ours, expected in zip(answer["masks"], wanted if several else [wanted], strict=True):
                assert [each["score"] for each in ours] == pytest.approx([each["score"] for each in expected], rel=1e-4)
                assert [each["token"] for each in ours] == [each["token"] for each in expected]
                for one, other in zip(ours, expected, strict=True):
                    assert one["token_str"] == other["token_str"]
                    if not several:
                        assert one["sequence"] == other["sequence"]
                    elif not run.tokenizer.vocabulary.is_special[one["token"]]:  # which only they show
                        assert without_ends(one["sequence"]) == without_ends(other["sequence"])
                    compared += 1
    assert compared >= 72

"""What tests of `jaxformer objectives` share: a text, pairs of texts, the verb, and its output read back."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jaxformer.cli.main import main
from jaxformer.explain import showing
from jaxformer.explain.examples import Examples

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
Verb = Callable[..., tuple[int, str, str]]


def text_in(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def pairs_in(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    return path


def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
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

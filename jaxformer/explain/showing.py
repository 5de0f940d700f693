"""Examples of an objective in words: what each stack reads, what is predicted, and which tokens were put there."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from jaxformer.explain.examples import Example, Examples
from jaxformer.objectives import ObjectiveMixture
from jaxformer.tables import print_paragraph
from jaxformer.tokenizers import Tokenizer

INSERTED, PREDICTED, QUIET, TITLE = "cyan", "bold underline", "dim", "bold"
_HEADS = {"next_sentence": ("B follows", "B is random")}
_SPACES = {"\n": "⏎", "\t": "⇥", " ": "␣"}

Line = tuple[int, Text]  # how far it is indented, in characters
Words = dict[str, list[Text]]  # array of tokens -> each as it is shown


def print_examples(shown: Examples, console: Console | None = None) -> None:
    """Print examples for people. Without colours braces say what was put in; a file gets one line for each part."""
    console = console or Console()
    for indent, text in _lines(shown, coloured=console.color_system is not None):
        print_paragraph(console, text, indent=indent)


def as_json(shown: Examples) -> dict[str, Any]:
    """Return the examples as plain values: every array, and the spellings of those that hold tokens."""
    return {
        "objective": shown.objective.name,
        "family": shown.family,
        "visibility": shown.visibility,
        "settings": settings(shown.objective),
        "tokenizer": {"origin": shown.origin, "vocab_size": shown.tokenizer.vocab_size},
        "examples": [
            {
                "number": number,
                "objective": example.objective.name,
                "row": example.row,
                "tokens": {name: shown.tokenizer.tokens(example.arrays[name]) for name in example.inserted},
                "put_in": {name: places.tolist() for name, places in example.inserted.items()},
                "arrays": {name: values.tolist() for name, values in example.arrays.items()},
            }
            for number, example in enumerate(shown.drawn)
        ],
    }


def settings(objective: Any) -> dict[str, Any]:
    """Return what an objective's config keys say other than by default."""
    return {
        field.name: getattr(objective, field.name)
        for field in dataclasses.fields(objective)
        if field.metadata.get("config", True) and getattr(objective, field.name) != field.default
    }


def pieces(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
    """Return each token in letters, without a space in it; · stands where a word goes on across its end."""
    return [_piece(tokenizer, number) for number in map(int, ids)]


def _piece(tokenizer: Tokenizer, number: int) -> str:
    vocabulary, (spelling,) = tokenizer.vocabulary, tokenizer.tokens([number])
    if spelling is None or vocabulary.is_special[number]:
        return spelling or f"<{number}>"  # a saved vocabulary may leave ids out
    # A lone mark of a space has no letters of its own.
    text = tokenizer.decode([number]).removeprefix("##") or spelling.replace("▁", " ")
    text = "".join(_SPACES.get(sign, sign if sign.isprintable() else "\ufffd") for sign in text.strip(" ") or text)
    if suffix := getattr(tokenizer.backend.model, "end_of_word_suffix", None):  # GPT's tokens say where a word ends
        return text if spelling.endswith(suffix) else f"{text}·"
    return text if vocabulary.word_starts[number] else f"·{text}"


def _lines(shown: Examples, coloured: bool) -> Iterator[Line]:
    carrier, is_mixture = f"{shown.family}, {shown.visibility}", isinstance(shown.objective, ObjectiveMixture)
    if is_mixture:
        yield 0, Text(f"mixture · {carrier}", TITLE)
        for part in shown.objective.parts:
            yield 2, Text(f"{part.weight:.0%} {_headline(part.objective)}")
    else:
        yield 0, Text(f"{_headline(shown.objective)} · {carrier}", TITLE)
    yield 0, Text(f"tokenizer: {shown.tokenizer.vocab_size:,} tokens, {shown.origin}", QUIET)
    colours = [("put in by the objective", INSERTED), ", ", ("predicted", PREDICTED)]
    yield 0, Text.assemble(*(colours if coloured else ["{put in by the objective}"]), ", ·within a word·")
    for number, example in enumerate(shown.drawn):
        of = f" · {example.objective.name}" if is_mixture else ""
        yield 0, Text(f"\nexample {number}{of} · row {example.row} of {example.num_rows}", TITLE)
        yield from _example(example, _words(example, shown.tokenizer, coloured), shown.visibility)


def _headline(objective: Any) -> str:
    """Return an objective's name, lengths and settings in one line."""
    rows, room = objective.row_settings, objective.shapes["weights"][0][0]
    length = " + ".join(map(str, rows["lengths"] if "lengths" in rows else [rows["row_length"]]))
    own = [f"{key}={value}" for key, value in settings(objective).items()]
    return " · ".join([objective.name, f"rows of {length} tokens", f"room for {room} predictions", *own])


def _words(example: Example, tokenizer: Tokenizer, coloured: bool) -> Words:
    words: Words = {}
    for name, inserted in example.inserted.items():
        styles = np.where(inserted, INSERTED, "").astype(object)
        if name == "inputs" and "predict_positions" in example.arrays:
            styles[example.arrays["predict_positions"][example.arrays["weights"] > 0]] += f" {PREDICTED}"
        words[name] = [
            Text(f"{{{piece}}}" if own and not coloured else piece, style.strip())
            for piece, own, style in zip(pieces(tokenizer, example.arrays[name]), inserted, styles, strict=True)
        ]
    return words


def _example(example: Example, words: Words, visibility: str) -> Iterator[Line]:
    sides = {"encoder_": "encoder reads", "": "decoder reads"} if "encoder_inputs" in words else {"": "reads"}
    for side, title in sides.items():
        segments = example.arrays[f"{side}segment_ids"]
        count = int(np.count_nonzero(segments))
        padding = f" … {len(segments) - count} padding" if count < len(segments) else ""
        yield 2, Text.assemble((title, TITLE), f" {_tokens(count)}{padding}")
        for label, places in _spans(_labels(example, side, visibility)):
            yield 4, _running(label, [words[f"{side}inputs"][place] for place in places])
    weights = example.arrays["weights"]
    yield 2, Text.assemble(("predicts", TITLE), f" {_tokens(int(np.count_nonzero(weights)))}")
    yield from _some(example, words) if "predict_positions" in example.arrays else _all(example, words)
    for head in example.objective.heads:
        value, weight = int(example.arrays[f"{head}_targets"]), float(example.arrays[f"{head}_weights"])
        meaning = f", {_HEADS[head][value]}" if head in _HEADS else ""
        yield 2, Text.assemble((head, TITLE), f" {value}{meaning}{_times(weight)}")


def _some(example: Example, words: Words) -> Iterator[Line]:
    """Predictions at chosen places: `place: what is read there -> target`."""
    slots = zip(example.arrays["predict_positions"], words["targets"], example.arrays["weights"], strict=True)
    entries = [
        Text.assemble(f"{place}: ", words["inputs"][place], " -> ", target, _times(weight))
        for place, target, weight in slots
        if weight
    ]
    if entries:
        yield 4, Text("   ").join(entries)


def _all(example: Example, words: Words) -> Iterator[Line]:
    """Predictions at every place: the targets of each segment, and where none counts."""
    weights = example.arrays["weights"]
    for label, places in _spans(_segments(example.arrays["segment_ids"])):
        targets: list[Text] = []
        for weight, run in itertools.groupby(places, weights.__getitem__):
            own = list(run)
            if weight:
                targets += [words["targets"][place] + _times(weight) for place in own]
            else:
                where = f"{own[0]} to {own[-1]}" if len(own) > 1 else f"{own[0]}"
                targets.append(Text(f"(no weight at {where})", QUIET))
        yield 4, _running(label, targets)


def _segments(segment_ids: np.ndarray) -> list[str]:
    """Return the name of each place's segment, "" where there is but one; padding has no place."""
    own = segment_ids[segment_ids > 0]
    return [f"segment {segment}" if own.max() > own.min() else "" for segment in own]


def _labels(example: Example, side: str, visibility: str) -> list[str]:
    """Return what parts the places that a stack reads: their segments, token types, and the prefix."""
    arrays = example.arrays
    labels = [[label] if label else [] for label in _segments(arrays[f"{side}segment_ids"])]
    for place, label in enumerate(labels if not side else []):
        if "token_types" in arrays and arrays["token_types"].any():
            label.append(f"type {arrays['token_types'][place]}")
        if "prefix_length" in arrays:
            first = "prefix" if visibility == "prefix" else "source"
            label.append(first if place < arrays["prefix_length"] else "target")
    return [", ".join(label) for label in labels]


def _spans(labels: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield runs of places of one label."""
    for label, places in itertools.groupby(range(len(labels)), labels.__getitem__):
        yield label, list(places)


def _running(label: str, words: Sequence[Text]) -> Text:
    """Return the label and the tokens in a row, those of one word joined."""
    line = Text()
    for word in words:
        joined = not line or word.plain.startswith("·") or line.plain.endswith("·")
        line.append("" if joined else " ").append_text(word)
    return Text.assemble((f"{label}: " if label else "", QUIET), line)


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _times(weight: float) -> str:
    return "" if weight == 1 else f" (weight {weight:g})"

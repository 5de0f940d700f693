"""Checks of config values: one phrasing for every range and choice, whatever the section; how members are read."""

import ast
import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxformer.checks import check_choice, check_kind, check_range, read_members
from jaxformer.config import SECTIONS
from jaxformer.errors import UserError
from jaxformer.models import PRESETS

ROOT = Path(__file__).resolve().parents[1]

NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"must be (?:(?:at least|above) {NUMBER}(?: and (?:at most|below) {NUMBER})?|(?:at most|below) {NUMBER})"
CHOICE = r"is not one of (?P<choices>\w+(?:, \w+)*); did you mean '(?P<nearest>\w+)'\?"

COMBINED = re.compile("must exceed|no such key of its own")  # of values that contradict each other

# Values of the fields that have no default.
MEMBERS: dict[str, list[dict[str, Any]]] = {
    "objective": [{"name": "span_corruption"}],
    "task": [{"name": "text_to_text"}],
    "data": [{"name": "text", "path": "texts"}],
}
GIVEN: dict[str, dict[str, Any]] = {
    "distillation": {"teacher": "runs/teacher"},
    "training": {"num_steps": 1, "batch_size": 1},
    "tokenizer": {"path": "tokenizer.json"},
    "data": {"path": "texts", "dataset": "ag_news", "languages": ("en", "de"), "members": MEMBERS["data"]},
    "objective": {"members": MEMBERS["objective"]},
    "task": {"members": MEMBERS["task"]},
}
# Numbers without a range of their own: seeds; a distance that buckets limit and a size that the corpus limits; columns,
# which are counted from either end; a threshold of logits; and two that nothing limits yet, the base of rotary
# positions and the window of banded attention.
ANY_NUMBER = {
    "model.attention_window", "model.rotary_base", "model.relative_max_distance", "tokenizer.vocab_size",
    "data.subset_seed", "data.word_column", "data.tag_column", "task.null_threshold",
    "generation.extra_length", "generation.length_alpha",
}  # fmt: skip
# Tasks that no mixture has.
SEPARATE = {name for name in SECTIONS["task"] if name not in ("text_to_text", "mixture")}
# Text that is no choice among a few words: names of fields, splits, files, metrics; patterns.
ANY_TEXT = {
    "tokenizer.path", "data.path", "data.dataset", "data.text_field", "data.label_field", "data.train_split",
    "task.text_fields", "task.input", "objective.source_field", "objective.target_field", "distillation.teacher",
    "optimizer.decay_exclude", "training.trainable", "data.label_separator", "data.languages", "task.choice_fields",
}  # fmt: skip


class Filled(typing.NamedTuple):
    """A section's dataclass, with values for all of its fields that pass every check."""

    section: str
    name: str
    kind: type
    values: dict[str, Any]


def _filled() -> Iterator[Filled]:
    for section, room in SECTIONS.items():
        if section == "model":
            yield from (Filled(section, name, room, dict(values)) for name, values in PRESETS.items())
            continue
        for name, kind in (room if isinstance(room, dict) else {section: room}).items():
            fields = {field.name: field for field in dataclasses.fields(kind) if field.metadata.get("config", True)}
            values = {key: field.default for key, field in fields.items() if field.default is not dataclasses.MISSING}
            values |= {key: value for key, value in GIVEN.get(section, {}).items() if key in fields}
            yield Filled(section, name, kind, values)


FILLED = list(_filled())


def fields_of(filled: Filled, *wanted: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the fields of these types, as the dataclass holds them."""
    made, types = filled.kind(**filled.values), typing.get_type_hints(filled.kind)
    for field in dataclasses.fields(filled.kind):
        if field.metadata.get("config", True) and types[field.name] in wanted:
            yield field.name, getattr(made, field.name)


def refusal(filled: Filled, key: str, value: Any) -> str | None:
    """Return what is said of one value among the others, or None where it is taken."""
    try:
        filled.kind(**filled.values | {key: value})
    except UserError as error:
        return str(error)
    return None


def misspelt(filled: Filled) -> Iterator[tuple[str, str, Any]]:
    """Yield (field, word, value) of every field of words that holds one: its word, and the value with it misspelt."""
    for key, value in fields_of(filled, str, tuple[str, ...]):
        if value:
            word = value if isinstance(value, str) else value[0]
            yield key, word, f"{word}x" if isinstance(value, str) else (f"{word}x", *value[1:])


@pytest.mark.parametrize(
    ("value", "limits", "words"),
    [
        (0, {"at_least": 1}, "at least 1"),
        (0, {"above": 0}, "above 0"),
        (2, {"at_most": 1}, "at most 1"),
        (1.5, {"at_least": 0, "below": 1}, "at least 0 and below 1"),
        (1, {"above": 0, "below": 1}, "above 0 and below 1"),
        (0.95, {"above": 0, "at_most": 0.9}, "above 0 and at most 0.9"),
    ],
)
def test_a_range_is_stated_with_the_key_and_the_value(value: float, limits: dict[str, float], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_range("room.size", value, **limits)
    assert str(caught.value) == f"room.size: {value} must be {words}"
    with pytest.raises(UserError, match=f"^room.size: nan must be {words}$"):
        check_range("room.size", math.nan, **limits)


def test_the_limits_themselves_belong_to_a_range_or_not() -> None:
    check_range("room.size", 1, at_least=1)
    check_range("room.size", 1, at_most=1)
    check_range("room.size", 0.0, at_least=0, below=1)
    for limits in ({"above": 1}, {"below": 1}):
        with pytest.raises(UserError):
            check_range("room.size", 1, **limits)


def test_a_choice_is_stated_with_the_nearest_one() -> None:
    check_choice("room.colour", "red", ("red", "green"))
    with pytest.raises(UserError) as caught:
        check_choice("room.colour", "gren", {"red": 1, "green": 2})
    assert str(caught.value) == "room.colour: 'gren' is not one of red, green; did you mean 'green'?"
    with pytest.raises(UserError, match="^room.colour: '' is not one of red, green$"):
        check_choice("room.colour", "", ("red", "green"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 10**400])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^room.size: .* is not a number$"):
        check_kind("room.size", value, float)


def test_every_range_of_every_section_is_stated_in_one_phrasing() -> None:
    """Of every number of every section, -1 and NaN are refused in the same words, or both are taken."""
    checked, free = set(), set()
    for filled in FILLED:
        for key, _ in fields_of(filled, int, float, float | None):
            name, said = f"{filled.section}.{key}", refusal(filled, key, -1)
            if said is None or COMBINED.search(said):
                free.add(name)
                continue
            checked.add(name)
            assert re.fullmatch(rf"{name}: -1 {RANGE}", said), said
            assert refusal(filled, key, math.nan) == said.replace("-1", "nan", 1)
    assert free - checked == ANY_NUMBER
    assert len(checked) > 60


def test_every_choice_of_every_section_is_stated_in_one_phrasing_with_the_nearest() -> None:
    """Every word of a section that is one of a few, misspelt, is refused in the same words; so are all others."""
    checked, free = set(), set()
    for filled in FILLED:
        for key, word, value in misspelt(filled):
            name, said = f"{filled.section}.{key}", refusal(filled, key, value)
            if said is None or COMBINED.search(said):
                free.add(name)
                continue
            checked.add(name)
            match = re.fullmatch(rf"{name}: '{word}x' {CHOICE}", said)
            assert match and match["nearest"] == word, said
            for choice in match["choices"].split(", "):
                wrong = f"{choice}x" if isinstance(value, str) else (f"{choice}x",)
                assert (refusal(filled, key, wrong) or "").endswith(f"did you mean '{choice}'?")
    assert free == ANY_TEXT
    assert len(checked) > 30


@pytest.mark.parametrize("section", MEMBERS)
def test_what_is_wrong_with_a_value_is_said_of_a_member_alike(section: str) -> None:
    """The section's name becomes the member's; all else of the message stays."""
    mixture, said_of = SECTIONS[section]["mixture"], 0
    for filled in FILLED:
        if filled.section != section or filled.name == "mixture" or filled.name in SEPARATE:
            continue
        numbers = [(key, type(value)(-1)) for key, value in fields_of(filled, int, float)]
        words = [(key, value) for key, _, value in misspelt(filled)]
        for key, value in [*numbers, *words]:
            said = refusal(filled, key, value)
            if said is None or key == "workers":  # which belongs to the whole mixture
                continue
            member = filled.values | {"name": filled.name, key: value}
            member.pop("workers", None)
            with pytest.raises(UserError) as caught:
                mixture(members=(*MEMBERS[section], member))
            assert str(caught.value) == said.replace(f"{section}.", f"{section}.members[1].", 1)
            said_of += 1
    assert said_of > (5 if section == "task" else 10)


def test_no_other_place_states_a_range_or_a_choice_in_words_of_its_own() -> None:
    own = re.compile(
        r"must be (at least|at most|above|in \[|between|0 or|one of)|must lie|not be negative|is not one of"
    )
    found = []
    for path in sorted([*(ROOT / "jaxformer").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if own.search("".join(text for text in texts if isinstance(text, str))):
                    found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"jaxformer/checks.py"}


# How members are read, whatever they are of.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake:
    slices: int
    sugar: float = 0.5
    iced: bool = False
    baker: str = ""
    workers: int = 0
    oven: str = dataclasses.field(default="", metadata={"config": False})

    def __post_init__(self) -> None:
        check_range("menu.slices", self.slices, at_least=1)


def read(*members: Any) -> list[tuple[Any, float, dict[str, Any]]]:
    return read_members("menu", members, {"cake": Cake}, {"tables": ()})


def test_a_member_is_its_class_its_weight_and_the_keys_of_the_mixture() -> None:
    given = {"name": "cake", "slices": 8, "sugar": 1, "weight": 2, "tables": [3]}
    (first, second) = read(given, {"name": "cake", "slices": 1})
    assert first == (Cake(slices=8, sugar=1), 2.0, {"tables": [3]}) and isinstance(first[1], float)
    assert second == (Cake(slices=1), 1.0, {"tables": ()})
    assert given == {"name": "cake", "slices": 8, "sugar": 1, "weight": 2, "tables": [3]}  # as it was


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("cake", r"menu.members\[1\]: 'cake' is not a dict of keys such as {'name': 'cake'}"),
        ({"name": "cak", "slices": 1}, r"menu.members\[1\].name: no 'cak'; did you mean 'cake'\?; there are cake"),
        ({"slices": 1}, r"menu.members\[1\].name: no 'None'"),
        ({"name": "cake"}, r"menu.members\[1\]: missing .*'slices'"),
        ({"name": "cake", "slices": 0}, r"menu.members\[1\].slices: 0 must be at least 1"),
        ({"name": "cake", "slices": 1.0}, r"menu.members\[1\].slices: 1.0 is not a whole number"),
        ({"name": "cake", "slices": True}, r"menu.members\[1\].slices: True is not a whole number"),
        ({"name": "cake", "slices": 1, "sugar": "much"}, r"menu.members\[1\].sugar: 'much' is not a number"),
        ({"name": "cake", "slices": 1, "sugar": math.nan}, r"menu.members\[1\].sugar: nan is not a number"),
        ({"name": "cake", "slices": 1, "iced": 1}, r"menu.members\[1\].iced: 1 is not true or false"),
        ({"name": "cake", "slices": 1, "baker": 3}, r"menu.members\[1\].baker: 3 is not text"),
        ({"name": "cake", "slice": 1}, r"menu.members\[1\].slice: no such key; did you mean 'slices'\?; cake has"),
        ({"name": "cake", "slices": 1, "workers": 1}, r"menu.members\[1\].workers: no such key"),
        ({"name": "cake", "slices": 1, "oven": "a"}, r"menu.members\[1\].oven: no such key"),
        ({"name": "cake", "slices": 1, "weight": -1}, r"menu.members\[1\].weight: -1 must be above 0"),
        ({"name": "cake", "slices": 1, "weight": True}, r"menu.members\[1\].weight: True is not a number"),
        ({"name": "cake", "slices": 1, "weight": math.inf}, r"menu.members\[1\].weight: inf is not a number"),
    ],
)
def test_what_is_wrong_with_a_member_is_named(member: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read({"name": "cake", "slices": 2}, member)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mixture_has_members() -> None:
    with pytest.raises(UserError, match="menu.members: a mixture needs at least one member"):
        read()

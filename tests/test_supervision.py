"""The protocol that objectives and tasks meet: every one of them has every member, of the type that it says."""

import collections.abc
import inspect
import types
import typing
from typing import Any

import numpy as np
import pytest
from cases import SIZE, SPECIAL, carrier, vocabulary

from jaxformer.errors import UserError
from jaxformer.objectives import LABEL_KINDS, OBJECTIVES, Answering, Part, Supervision
from jaxformer.tasks import TASKS

SEVERAL = "several tasks"  # whose name is that of several objectives
KINDS: dict[str, Any] = OBJECTIVES | {SEVERAL if name == "mixture" else name: kind for name, kind in TASKS.items()}
NEEDED: dict[str, Any] = {
    "mixture": {"members": ({"name": "span_corruption"}, {"name": "prefix_lm", "weight": 3.0})},
    SEVERAL: {"members": ({"name": "text_to_text", "weight": 2.0}, {"name": "text_to_text", "target_kind": "text"})},
    "replace_spans": {"sequence_length": 64},  # the vocabulary has few sentinels
}
PROPERTIES = {name: member for name, member in vars(Supervision).items() if isinstance(member, property)}
METHODS = ("for_model", "bind")
ANSWERING = {name for name in vars(Answering) if not name.startswith("_")}
ROLES = SPECIAL | {"delimiter": 7, "extract": 8}


def bound(name: str) -> Any:
    """An objective or a task by its name, for its own family, as a run binds it: no matter which of the two it is."""
    supervision = KINDS[name](**NEEDED.get(name, {}))
    family = supervision.families[0]
    visibility = {"encoder_only": "full", "decoder_only": "prefix"}.get(family, "causal")
    carried = supervision.for_model(carrier(family, "causal" if name == "causal_lm" else visibility))
    labels: Any = ("B-X", "I-X", "O") if carried.label_kind == "tags" else ("no", "yes")
    labels = (labels, ()) if name == SEVERAL else labels
    # Text by its length, so that two labels are not one.
    return carried.bind(
        vocabulary(special=ROLES), labels, lambda text: np.full(len(text), 10, np.int32), lambda ids: "a" * len(ids)
    )


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type of the protocol, what it holds included."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(fits(value, argument) for argument in arguments)
    if kind is Any:
        return True
    if kind is type(None):
        return value is None
    if kind is Answering:
        return all(hasattr(value, member) for member in ANSWERING)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, arguments[0]) and fits(entry, arguments[1]) for key, entry in value.items()
        )
    if origin is tuple and arguments[-1] is not ...:
        return isinstance(value, tuple) and all(map(fits, value, arguments)) and len(value) == len(arguments)
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, origin) and all(fits(entry, arguments[0]) for entry in value)
    return type(value) is bool if kind is bool else isinstance(value, kind)


def test_the_check_of_types_tells_them_apart() -> None:
    assert fits({"a": 1}, dict[str, int]) and not fits({"a": "1"}, dict[str, int])
    assert fits(("a",), tuple[str, ...]) and not fits(("a",), tuple[int, ...]) and not fits(["a"], tuple[str, ...])
    assert fits((), tuple[str, ...]) and fits([1], collections.abc.Sequence[int]) and not fits(1, bool)


@pytest.mark.parametrize("name", KINDS)
def test_every_objective_and_task_meets_the_protocol(name: str) -> None:
    supervision = bound(name)
    for member, declared in PROPERTIES.items():
        kind = typing.get_type_hints(declared.fget)["return"]
        value = getattr(supervision, member)
        assert fits(value, kind), f"{member} is {value!r}, not {kind}"
    for method in METHODS:
        declared = [*inspect.signature(getattr(Supervision, method)).parameters]
        assert [*inspect.signature(getattr(supervision, method)).parameters] == declared[1:], method
    assert type(supervision) is KINDS[name] and supervision.name == ("mixture" if name == SEVERAL else name)
    assert set(vars(Supervision)) - set(vars(typing.Protocol)) >= {*PROPERTIES, *METHODS}


@pytest.mark.parametrize("name", KINDS)
def test_what_they_say_of_themselves_fits_together(name: str) -> None:
    supervision = bound(name)
    groups = {"tokens"} if supervision.predicts_tokens else set()
    assert set(supervision.coefficients) == groups | set(supervision.heads)
    emitted = set(supervision.shapes)
    assert ({"targets", "weights"} <= emitted) == supervision.predicts_tokens
    assert {f"{head}_{what}" for head in supervision.heads for what in ("targets", "weights")} <= emitted
    assert supervision.labelled == (name not in OBJECTIVES)
    for part in supervision.parts:  # of several tasks each answers for itself
        learnt = part.objective
        assert learnt.labelled == supervision.labelled == bool(learnt.metrics)
        assert (learnt.answering is learnt) == learnt.labelled == (learnt.label_kind in LABEL_KINDS)
        assert not learnt.decodes or (learnt.metrics and not learnt.heads)
    assert all(isinstance(part, Part) and callable(part.objective) for part in supervision.parts)
    assert sum(part.weight for part in supervision.parts) == pytest.approx(1.0)
    if name not in ("mixture", SEVERAL):
        assert [part.objective for part in supervision.parts] == [supervision]
    assert all(0 <= token < SIZE for token in supervision.new_token_ids)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_another_family_is_refused(name: str) -> None:
    supervision = KINDS[name](**NEEDED.get(name, {}))
    refused = {"decoder_only", "encoder_only", "encoder_decoder"} - set(supervision.families)
    section = "objective" if name in OBJECTIVES else "task"
    for family in refused:
        with pytest.raises(UserError, match=rf"^{section}\.(members\[0\]\.)?name: .*{family}"):
            supervision.for_model(carrier(family))


def test_pairs_of_segments_need_two_token_types_in_a_mixture_too() -> None:
    one_type = carrier("encoder_only", "full", token_types=1)
    with pytest.raises(UserError, match=r"^objective\.next_sentence: segment pairs need model\.token_types of 2"):
        KINDS["masked_lm"]().for_model(one_type)
    with pytest.raises(UserError, match=r"^objective\.members\[0\]\.next_sentence: segment pairs need"):
        KINDS["mixture"](members=({"name": "masked_lm"},)).for_model(one_type)
    KINDS["masked_lm"](next_sentence=False).for_model(one_type)

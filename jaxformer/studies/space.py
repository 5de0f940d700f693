"""What a sweep searches, as plain data: lists, lists that go together, ranges, seeds, and conditions between keys.

    {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
     "model.d_model, model.d_ff": [(128, 512), (256, 1024)],
     "optimizer.momentum": {"values": [0.0, 0.9], "when": {"optimizer.name": ["sgd"]}},
     "optimizer.name": ["sgd", "adamw"],
     "seed": range(3)}

A point is {key: value}, without the keys whose conditions it does not meet. Seeds are no key of a point: every point is
trained once with each, and counts by the mean. Points that no lists make are given one by one, alone:

    {"points": [{"objective.name": "causal_lm"}, {"model.d_model": 256, "model.d_ff": 1024}], "seed": range(3)}
"""

import ast
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError, suggest

SEED, POINTS = "seed", "points"
FLAG = "--sweep."
_FIELDS = ("values", "low", "high", "log", "integer", "step", "when")
_MOST_CORNERS = 512
_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_DRAWS = 50  # of which one must be new, where points are drawn at random

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing that is searched: the values that `keys` take together, or the range of a single key.

    `when` is {other key: the values of it with which this one is searched}; with others it keeps the base's value.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    step: float = 0.0  # 0: any value of the range
    when: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(self.keys)

    @property
    def is_range(self) -> bool:
        return not self.values

    def ends(self) -> tuple[tuple[Any, ...], ...]:
        """Return all values of a list, and the two ends of a range."""
        return self.values or ((self._number(self.low),), (self._number(self.high),))

    def at(self, share: float) -> tuple[Any, ...]:
        """Return the value that lies so far (0 to 1, 1 excluded) in the list or the range."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.step:
            return (self._number(self.low + self.step * int(share * (self._steps + 1))),)
        if self.integer and not self.log:
            return (int(self.low) + int(share * (self.high - self.low + 1)),)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        found = low + share * (high - low)
        # In few digits, which people can read and type again.
        return (self._number(float(f"{math.exp(found) if self.log else found:.4g}")),)

    def is_met_by(self, point: Mapping[str, Any]) -> bool:
        """Say whether a point is one with which this is searched."""
        return all(key in point and point[key] in values for key, values in self.when.items())

    @property
    def _steps(self) -> int:
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def _number(self, value: float) -> Any:
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)

    def to_dict(self) -> dict[str, Any]:
        """Return what `read_space` reads, in types that JSON has."""
        when = {"when": {key: list(values) for key, values in self.when.items()}} if self.when else {}
        if self.values:
            return {"values": [list(value) if len(self.keys) > 1 else value[0] for value in self.values]} | when
        fields = {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer, "step": self.step}
        return {name: value for name, value in fields.items() if value or name in ("low", "high")} | when


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched, each dimension behind those that its conditions name, and the seeds of every point's runs; or
    `points`, in place of dimensions."""

    dimensions: tuple[Dimension, ...]
    seeds: tuple[int, ...] = ()  # (): the base's
    points: tuple[Point, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(key for part in (*(one.keys for one in self.dimensions), *self.points) for key in part)
        )

    @property
    def has_ranges(self) -> bool:
        return any(dimension.is_range for dimension in self.dimensions)

    def grid(self) -> list[Point]:
        """Return all points of a space of lists, in order. Raises UserError for one with ranges."""
        for dimension in self.dimensions:
            if dimension.is_range:
                raise UserError(
                    f"{FLAG}{dimension.name}: a grid needs a list of values, and this is a range; "
                    "list them, or search with --sampler=random or tpe and --trials=N"
                )
        return self.corners()

    def corners(self, most: int = 0) -> list[Point]:
        """Return the points made of listed values and the ends of ranges; of more than `most` (0: any number) those in
        which one dimension at a time takes all its values."""
        if self.points:
            return list(self.points)
        ends = [dimension.ends() for dimension in self.dimensions]
        if most and math.prod(map(len, ends)) > most:
            chosen: Iterator[Any] = (
                [*(other[0] for other in ends[:at]), value, *(other[0] for other in ends[at + 1 :])]
                for at, values in enumerate(ends)
                for value in values
            )
        else:
            chosen = itertools.product(*ends)
        return _distinct(self._point(values) for values in chosen)

    def checked(self) -> list[Point]:
        """Return the points that stand for all when a space is checked."""
        return self.corners(_MOST_CORNERS) if self.has_ranges else self.corners()

    def drawn(self, seed: int, number: int) -> list[Point]:
        """Return so many different points, drawn at random: the same for the same space and seed; fewer where the space
        has fewer."""
        if self.points:
            order = np.random.default_rng(seed).permutation(len(self.points))
            return [self.points[index] for index in order[:number]]
        found: list[Point] = []
        seen: set[str] = set()
        for index in itertools.count():
            if len(found) == number or index > _DRAWS * number:
                return found
            shares = np.random.default_rng([seed, index]).random(len(self.dimensions))
            values = [dimension.at(float(share)) for dimension, share in zip(self.dimensions, shares, strict=True)]
            point = self._point(values)
            if repr(point) not in seen:
                seen.add(repr(point))
                found.append(point)
        raise AssertionError("counting does not end")

    def _point(self, values: Sequence[tuple[Any, ...]]) -> Point:
        point: Point = {}
        for dimension, value in zip(self.dimensions, values, strict=True):
            if dimension.is_met_by(point):
                point |= zip(dimension.keys, value, strict=True)
        return point

    def to_dict(self) -> dict[str, Any]:
        """Return what `read_space` reads, in types that JSON has."""
        seeds = {SEED: list(self.seeds)} if self.seeds else {}
        if self.points:
            return {POINTS: [dict(point) for point in self.points]} | seeds
        return {dimension.name: dimension.to_dict() for dimension in self.dimensions} | seeds


def _distinct(points: Iterator[Point]) -> list[Point]:
    return list({repr(point): point for point in points}.values())


def overrides_of(point: Mapping[str, Any]) -> list[str]:
    """Return a point as overrides of a config."""
    return [f"{key}={value}" for key, value in point.items()]


def described(point: Mapping[str, Any], seed: int | None = None) -> str:
    """Return a point as people read it: optimizer.learning_rate=0.001 training.batch_size=16."""
    words = overrides_of(point) + ([] if seed is None else [f"{SEED}={seed}"])
    return " ".join(words) or "the config as it is"


def read_space(content: Mapping[str, Any]) -> Space:
    """Read a space from plain data (see the top of this file). Raises UserError, naming the key, for what is none."""
    if not isinstance(content, Mapping):
        raise UserError(f"get_sweep returns {type(content).__name__}, not a dict of keys and their values")
    dimensions: list[Dimension] = []
    seeds: tuple[int, ...] = ()
    if POINTS in content:
        return _listed_points(content)
    for name, given in content.items():
        keys = tuple(part.strip() for part in str(name).split(","))
        if SEED in keys:
            seeds = _seeds(keys, given)
            continue
        if not all(keys):
            raise UserError(f"{FLAG}{name}: an empty key; write section.key, and commas between keys that go together")
        dimensions.append(_dimension(keys, given))
    if not dimensions and not seeds:
        raise UserError(f"the space is empty: nothing is searched; give {FLAG}SECTION.KEY=VALUE,VALUE or get_sweep")
    every = [key for dimension in dimensions for key in dimension.keys]
    for key in every:
        if every.count(key) > 1:
            raise UserError(f"{FLAG}{key}: searched twice; leave one of them out")
    return Space(tuple(_ordered(dimensions)), seeds)


def _listed_points(content: Mapping[str, Any]) -> Space:
    points = content[POINTS]
    if others := [name for name in content if name not in (POINTS, SEED)]:
        raise UserError(f"{FLAG}{others[0]}: where points are given one by one, nothing else is searched")
    if not isinstance(points, (list, tuple)) or not points or not all(isinstance(each, Mapping) for each in points):
        raise UserError(f"{FLAG}{POINTS}: give a list of dicts, each of keys and their values")
    found = _distinct(dict(point) for point in points)
    if len(found) < len(points):
        raise UserError(f"{FLAG}{POINTS}: a point is given twice")
    return Space((), _seeds((SEED,), content[SEED]) if SEED in content else (), tuple(found))


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the space, as `read_space` takes it, of words of the command line without their "--sweep."."""
    content: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not text:
            raise UserError(f"{FLAG}{word}: no values; write {FLAG}{name or 'SECTION.KEY'}=A,B,C or LOW..HIGH[:log]")
        if name in content:
            raise UserError(f"{FLAG}{name}: given twice; put all its values into one list")
        content[name] = _read_text(name, text)
    return content


def _read_text(name: str, text: str) -> Any:
    if counted := re.fullmatch(r"(-?\d+):(-?\d+)", text):
        return list(range(int(counted[1]), int(counted[2])))
    bounds, *flags = text.split(":")
    if match := re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", bounds):
        low, high = _number(name, match[1]), _number(name, match[2])
        fields: dict[str, Any] = {"low": low, "high": high, "integer": isinstance(low, int) and isinstance(high, int)}
        for flag in flags:
            if flag in ("log", "int"):
                fields |= {"log": True} if flag == "log" else {"integer": True}
            else:
                fields["step"] = _number(name, flag)
        return fields
    return [_value(part) for part in _parts(text)]


def _number(name: str, text: str) -> int | float:
    value = _value(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{FLAG}{name}: '{text}' is no number; a range is LOW..HIGH, with :log, :int or a step behind")
    return value


def _value(text: Any) -> Any:
    """Return what a text of the command line stands for: a number, True, None, a tuple, or itself."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def _parts(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _seeds(keys: Sequence[str], given: Any) -> tuple[int, ...]:
    values = given.get("values") if isinstance(given, Mapping) else given
    if len(keys) > 1 or isinstance(given, Mapping) and (given.keys() != {"values"}):
        raise UserError(f"{FLAG}seed: seeds are repetitions of every point and go with no other key; give a list alone")
    seeds = tuple(values) if isinstance(values, (list, tuple, range)) else (values,)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"{FLAG}seed: {seed!r} is no seed; give whole numbers from 0 on, as 0:3 for 0, 1, 2")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{FLAG}seed: {'no seed is given' if not seeds else 'a seed is given twice'}")
    return seeds


def _dimension(keys: tuple[str, ...], given: Any) -> Dimension:
    name = ", ".join(keys)
    fields = dict(given) if isinstance(given, Mapping) else {"values": given}
    for field in fields:
        if field not in _FIELDS:
            raise UserError(f"{FLAG}{name}: no '{field}'{suggest(field, _FIELDS)}; there are {', '.join(_FIELDS)}")
    when = {key: tuple(_listed(values)) for key, values in (fields.get("when") or {}).items()}
    if "values" not in fields:
        return _range(keys, fields, when)
    values = _listed(fields["values"])
    if not values:
        raise UserError(f"{FLAG}{name}: an empty list; give the values to search")
    if len(keys) > 1:
        for value in values:
            if not isinstance(value, (list, tuple)) or len(value) != len(keys):
                raise UserError(f"{FLAG}{name}: {value!r} does not give {len(keys)} values, one for each key")
        return Dimension(keys=keys, values=tuple(tuple(map(_hashable, value)) for value in values), when=when)
    return Dimension(keys=keys, values=tuple((_hashable(value),) for value in values), when=when)


def _range(keys: tuple[str, ...], fields: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Dimension:
    name = ", ".join(keys)
    if len(keys) > 1:
        raise UserError(f"{FLAG}{name}: keys that go together need a list of values, not a range")
    numbers = {field: fields.get(field, 0 if field == "step" else None) for field in ("low", "high", "step")}
    for field, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{FLAG}{name}: {field} is {value!r}; a range needs numbers: low and high, perhaps step")
    low, high, step = numbers["low"], numbers["high"], numbers["step"]
    log, integer = bool(fields.get("log")), bool(fields.get("integer"))
    if not low < high:
        raise UserError(f"{FLAG}{name}: the range {low}..{high} is empty; its end must be the larger one")
    if log and (low <= 0 or step):
        raise UserError(f"{FLAG}{name}: a log range begins above 0 and has no step")
    if step < 0 or step > high - low:
        raise UserError(f"{FLAG}{name}: a step of {step} does not fit into {low}..{high}")
    if integer and any(value != int(value) for value in (low, high, step)):
        raise UserError(f"{FLAG}{name}: a range of whole numbers has whole ends and a whole step")
    return Dimension(keys=keys, low=low, high=high, log=log, integer=integer, step=step, when=when)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, range)) else [values]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _ordered(dimensions: Sequence[Dimension]) -> Iterator[Dimension]:
    """Yield dimensions, each behind those that its conditions name."""
    left, known = list(dimensions), set[str]()
    every = {key: dimension for dimension in dimensions for key in dimension.keys}
    for dimension in dimensions:
        for key, values in dimension.when.items():
            if key not in every:
                near = suggest(key, list(every))
                raise UserError(f"{FLAG}{dimension.name}: its condition names {key}, which is not searched{near}")
            at = every[key].keys.index(key)
            listed = [value[at] for value in every[key].values]
            for value in values:
                if listed and value not in listed:
                    raise UserError(f"{FLAG}{dimension.name}: its condition asks for {key}={value}, which it never is")
    while left:
        ready = [dimension for dimension in left if known >= dimension.when.keys()]
        if not ready:
            raise UserError(f"{FLAG}{left[0].name}: its conditions go round in a circle")
        yield ready[0]
        known.update(ready[0].keys)
        left.remove(ready[0])

"""What a reproduction shows, in numbers: differences with their uncertainty, orders against chance, power laws.

All of it is computed from the dict of `reproduction.read_reproduction`, and nothing of it is stored: whoever has the
file can compute it again.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Result = Mapping[str, Any]

LEVEL, POWER = 0.05, 0.8
CENTRAL = 0.95  # the share of what chance gives that is told
EXACT_UP_TO = 8  # rows; of more the orders are too many to try them all
DRAWS = 100_000
_BOOTSTRAPS = 10_000
_MANY = 1_000  # seeds from which on a normal distribution stands for Student's
_EQUAL = 1e-9  # correlations as near as that are equal


class Difference(NamedTuple):
    """A row's value minus the base row's, over the seeds that both have. `low` and `high` bound its 95 % interval and
    `deviation` is the standard deviation of the paired differences: None of a single seed, and where every seed gives
    exactly the same difference, which tells nothing of their spread."""

    mean: float
    seeds: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    needed: int | None = None  # see `seeds_needed`

    @property
    def shows(self) -> bool | None:
        """Whether it stands out from what differs between seeds anyway; None where that is not known."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


class Order(NamedTuple):
    """How well our order of rows agrees with the paper's. `chance` is the share of all orders that agree at least as
    well, `reverse` of those that agree at most as well, `best` the share that agrees as well as any can; `low` and
    `high` hold the central 95 % of the correlations that chance gives."""

    rows: tuple[str, ...]
    spearman: float
    kendall: float
    chance: float
    reverse: float
    best: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        return self.chance <= LEVEL

    @property
    def contradicts(self) -> bool:
        return self.reverse <= LEVEL

    @property
    def can_show(self) -> bool:
        """Whether so few rows could show an agreement at all."""
        return self.best <= LEVEL


class Sign(NamedTuple):
    """Whether a row's difference to the base has the direction that it has in the paper."""

    column: str
    row: str
    ours: Difference
    paper: float
    same: bool


class Fit(NamedTuple):
    """A power law through row means: value = `factor` * x ** `slope`, and `low` and `high` hold the slopes of 95 % of
    bootstrap samples; None of fewer than three sizes. Papers tell the slope of a loss without its sign: see
    `slope_of`."""

    name: str
    x: str
    column: str
    rows: tuple[str, ...]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    factor: float
    slope: float
    low: float | None
    high: float | None
    paper: float | None

    falls: bool

    @property
    def holds_paper(self) -> bool | None:
        """Whether the paper's exponent lies within the band; None where there is no band or no exponent."""
        if self.paper is None or self.low is None or self.high is None:
            return None
        return self.low <= self.slope_of(self.paper) <= self.high

    def slope_of(self, exponent: float) -> float:
        """Return the slope that an exponent of the paper's is: of what should fall it is told without its sign."""
        return -exponent if self.falls and exponent > 0 else exponent


# Columns and values.


def values_of(result: Result, column: str, row: str) -> list[float]:
    """Return what the seeds of a row gave for a column."""
    return [value for value in result["rows"][row]["values"][column] if value is not None]


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def shown_columns(result: Result) -> list[str]:
    """Return the columns that this scale has."""
    return [name for name, column in result["columns"].items() if "missing" not in column]


def judged_columns(result: Result) -> list[str]:
    """Return the columns that say how good a model is: metrics, and means over them."""
    return [name for name, column in result["columns"].items() if "metric" in column or "mean_of" in column]


def paper_column(result: Result, column: str) -> str:
    """Return the paper's column beside which one of ours stands."""
    return str(result["columns"][column].get("paper", column))


def paper_number(result: Result, column: str, row: str) -> float | None:
    """Return what the paper printed of a row in the column beside ours."""
    number = result["rows"][row]["paper"].get(paper_column(result, column))
    return None if number is None else float(number)


def paper_difference(result: Result, column: str, row: str) -> float | None:
    """Return by how much the paper's row differs from its base row."""
    number, base = (paper_number(result, column, name) for name in (row, result["base"]))
    if result["differences"]:
        return 0.0 if row == result["base"] else number
    return None if number is None or base is None else number - base


def better(result: Result, column: str) -> int:
    """Return 1 where the larger of two values of a column, and of the paper's beside it, is the better, else -1."""
    return 1 if result["columns"][column]["mode"] == "max" else -1


# Differences to the base row.


def difference(result: Result, column: str, row: str) -> Difference | None:
    """Return by how much a row differs from the base row in a column; None where they have no seed in common, and for
    the base row."""
    if row == result["base"]:
        return None
    both = [result["rows"][name]["values"][column] for name in (row, result["base"])]
    paired = [own - base for own, base in zip(*both, strict=True) if own is not None and base is not None]
    return paired_difference(paired) if paired else None


def paired_difference(differences: Sequence[float]) -> Difference:
    """Return the mean of paired differences with its two-sided 95 % interval by Student's t."""
    from scipy import stats

    number, middle, spread = len(differences), mean(differences), deviation(differences)
    # Equal values may differ by rounding once they are scaled and averaged.
    if not spread or spread <= 1e-12 * max(map(abs, differences)):
        return Difference(middle, number)
    margin = float(stats.t.ppf(1 - LEVEL / 2, number - 1)) * spread / math.sqrt(number)
    return Difference(middle, number, spread, middle - margin, middle + margin, seeds_needed(middle, spread))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Return with how many seeds a paired two-sided t test at 5 % finds a difference of this size, if it is there, in
    80 % of cases; None where there is no difference. At least two."""
    if not difference or not deviation:
        return None
    effect = abs(difference) / deviation
    # A test that knew the deviation would need a little fewer: as many where there are many.
    about = ((statistics.NormalDist().inv_cdf(1 - LEVEL / 2) + statistics.NormalDist().inv_cdf(POWER)) / effect) ** 2
    if about > _MANY:
        return math.ceil(about)
    return next(number for number in itertools.count(max(2, math.floor(about))) if power_of(effect, number) >= POWER)


def power_of(effect: float, seeds: int) -> float:
    """Return how often a paired two-sided t test at 5 % with so many seeds finds a difference of `effect` standard
    deviations."""
    from scipy import stats

    edge, away = float(stats.t.ppf(1 - LEVEL / 2, seeds - 1)), effect * math.sqrt(seeds)
    if away > 30:  # beyond what scipy computes; so far out only the estimate of the deviation matters
        return float(stats.chi2.cdf((seeds - 1) * (away / edge) ** 2, seeds - 1))
    # The square of t, which needs no far tail of the noncentral t: scipy gives NaN there.
    return float(stats.ncf.sf(edge**2, 1, seeds - 1, away**2))


def signs(result: Result) -> list[Sign]:
    """Compare the direction of every difference to the base that both we and the paper have, and that is one in the
    paper."""
    found = []
    for column in judged_columns(result):
        for row in result["rows"]:
            ours, paper = difference(result, column, row), paper_difference(result, column, row)
            if ours is not None and paper:
                found.append(Sign(column, row, ours, paper, ours.mean * paper > 0))
    return found


# Orders.


def order(result: Result, column: str) -> Order | None:
    """Compare our order of the rows in a column with the paper's; None for fewer than two rows, or rows that are all
    equal. Rows are compared by their means over the seeds that all of them have, or, where there are none, over their
    own."""
    number = paper_difference if result["differences"] else paper_number
    each = {row: number(result, column, row) for row in result["rows"]}
    known = {row: found for row, found in each.items() if found is not None}
    rows = [row for row in known if values_of(result, column, row)]
    sign = better(result, column)
    ours = [sign * value for value in _means(result, column, rows)]
    return order_of(rows, ours, [sign * known[row] for row in rows])


def _means(result: Result, column: str, rows: Sequence[str]) -> list[float]:
    every = [result["rows"][row]["values"][column] for row in rows]
    common = [seeds for seeds in zip(*every, strict=True) if all(value is not None for value in seeds)]
    return [mean(each) for each in (zip(*common, strict=True) if common else map(_known, every))]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def order_of(rows: Sequence[str], ours: Sequence[float], paper: Sequence[float]) -> Order | None:
    """Compare two rankings, higher being better, by Spearman's and Kendall's (tau-b) correlations, and the first with
    what all orders of the rows give: every one up to 8 rows, 100,000 drawn ones of more, whose shares count the order
    that was found among them."""
    from scipy import stats

    if len(rows) < 2 or len({*ours}) < 2 or len({*paper}) < 2:
        return None
    own, theirs = (_standardised(stats.rankdata(values)) for values in (ours, paper))
    spearman, orders = float(own @ theirs), _orders(len(rows))
    drawn = own[orders] @ theirs
    extra = 0 if len(rows) <= EXACT_UP_TO else 1
    share = functools.partial(_share, extra=extra)
    low, high = np.quantile(drawn, [(1 - CENTRAL) / 2, (1 + CENTRAL) / 2], method="inverted_cdf")
    return Order(
        tuple(rows),
        spearman,
        float(stats.kendalltau(ours, paper).statistic),
        share(drawn >= spearman - _EQUAL),
        share(drawn <= spearman + _EQUAL),
        share(drawn >= float(np.sort(own) @ np.sort(theirs)) - _EQUAL),
        float(low),
        float(high),
    )


def _standardised(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean()
    return centred / np.linalg.norm(centred)


@functools.lru_cache(maxsize=4)
def _orders(number: int) -> np.ndarray:
    """Return orders of so many rows, [orders, rows]."""
    if number <= EXACT_UP_TO:
        return np.array(list(itertools.permutations(range(number))))
    return np.random.default_rng(0).permuted(np.tile(np.arange(number), (DRAWS, 1)), axis=1)


def _share(holds: np.ndarray, extra: int) -> float:
    return (int(holds.sum()) + extra) / (len(holds) + extra)


# Power laws.


def fits(result: Result) -> list[Fit]:
    """Return the power laws that the table asks for, of those that two rows with different x have values for."""
    return [found for entry in result["fits"] if (found := _fit(result, entry)) is not None]


def _fit(result: Result, entry: Mapping[str, Any]) -> Fit | None:
    column, x = entry["column"], entry["x"]
    rows = [row for row in entry["rows"] if values_of(result, column, row) and result["rows"][row]["size"].get(x)]
    xs = [float(result["rows"][row]["size"][x]) for row in rows]
    values = [values_of(result, column, row) for row in rows]
    if len({*xs}) < 2 or any(mean(each) <= 0 for each in values):
        return None
    ys, paper = [mean(each) for each in values], entry.get("paper")
    slope, height = np.polyfit(np.log(xs), np.log(ys), 1)
    low, high = _band(xs, values) or (None, None)
    return Fit(
        entry["name"], x, column, tuple(rows), tuple(xs), tuple(ys), float(np.exp(height)), float(slope),
        low, high, None if paper is None else float(paper), better(result, column) < 0,
    )  # fmt: skip


def _band(xs: Sequence[float], values: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Return the central 95 % of the slopes of samples, drawn with replacement: rows, and within each its seeds. A
    sample whose rows have all one x has no slope and is left out; None of fewer than three sizes."""
    if len({*xs}) < 3:
        return None
    rng, rows = np.random.default_rng(0), len(xs)
    chosen = rng.integers(rows, size=(_BOOTSTRAPS, rows))
    means = np.stack(
        [np.asarray(each)[rng.integers(len(each), size=(_BOOTSTRAPS, rows, len(each)))].mean(axis=2) for each in values]
    )  # [row, sample, place]: a row that a sample has twice has other seeds each time
    ys = np.log(np.take_along_axis(means, chosen[None], axis=0)[0])
    logs = np.log(xs)[chosen]
    centred = logs - logs.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1)
    kept = squares > 1e-12
    slopes = (centred * ys).sum(axis=1)[kept] / squares[kept]
    low, high = np.quantile(slopes, [(1 - CENTRAL) / 2, (1 + CENTRAL) / 2])
    return float(low), float(high)

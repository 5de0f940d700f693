"""What a reproduction says, in sentences (see `reproduction` for what it holds)."""

import shlex
from collections.abc import Iterator, Sequence

from jaxformer.report.reproduction import Result
from jaxformer.report.reproduction_statistics import (
    EXACT_UP_TO,
    Fit,
    Order,
    Sign,
    difference,
    fits,
    judged_columns,
    order,
    shown_columns,
    signs,
    values_of,
)
from jaxformer.tables import duration, energy, mass, significant

_ARTICLES = {"parameters": "its parameters", "tokens": "the tokens it was trained on", "flops": "its training FLOPs"}


def title(result: Result) -> str:
    """The paper and its table, as a heading: "BERT (Devlin et al. 2018), Table 5, page 8"."""
    return f"{result['paper']}, {result['place']}"


# The finding.


def headline(result: Result) -> str:
    """Return what was found in a sentence or two: as much as the numbers show, and no more."""
    if not any(values_of(result, column, row) for row in result["rows"] for column in shown_columns(result)):
        return "Nothing has been measured yet."
    if result["scale"] == "smoke":
        return (
            "At the smoke scale the models are too small and too briefly trained to learn: this shows that every run of "
            "the table works, and says nothing about its question."
        )
    orders = orders_of(result)
    if not orders and (found := fits(result)):
        return " ".join(_fit(fit) for fit in found[:2])
    if not orders:
        return "Too few rows have both a result and a number of the paper: there is no order to compare yet."
    means = [column for column in orders if "mean_of" in result["columns"][column]]
    if len(orders) == 1 or means:
        column = means[0] if means else next(iter(orders))
        return _order(orders[column], column)
    agree = [column for column in orders if orders[column].agrees]
    if not agree:
        least = min(orders, key=lambda column: orders[column].chance)
        return (
            f"No agreement with the paper's order of rows is shown in any of the {len(orders)} columns; the nearest is "
            f"{least}, where chance alone orders the {len(orders[least].rows)} rows as well in "
            f"{share(orders[least].chance)} of cases."
        )
    more = "" if len(agree) == len(orders) else f"; in the other {len(orders) - len(agree)} no agreement is shown"
    return (
        f"In {len(agree)} of {len(orders)} columns ({', '.join(agree)}) our order of the rows agrees with the paper's "
        f"more closely than chance alone would make it in 95 % of cases{more}."
    )


def orders_of(result: Result) -> dict[str, Order]:
    """Return {column: how our order of rows agrees with the paper's} of the columns in which both have one."""
    return {column: found for column in judged_columns(result) if (found := order(result, column)) is not None}


def share(part: float) -> str:
    """A share in percent, as exact as a reader needs it: 17 %, 0.8 %, less than 0.01 %."""
    return "less than 0.01 %" if part < 1e-4 else f"{significant(100 * part, 2 if part < 0.995 else 3)} %"


def _order(found: Order, column: str) -> str:
    number = len(found.rows)
    by_chance = f"chance alone orders {number} rows at least as well in {share(found.chance)} of cases"
    if found.agrees:
        return f"{column}: our order of the rows agrees with the paper's (rank correlation {found.spearman:.2f}); {by_chance}."
    if found.contradicts:
        return (
            f"{column}: our order of the rows contradicts the paper's (rank correlation {found.spearman:.2f}); chance "
            f"alone gives one as contrary in {share(found.reverse)} of cases."
        )
    if not found.can_show:
        best = f", and even a perfect match would come by chance in {share(found.best)}"
        return (
            f"{column}: {by_chance}{'' if found.chance == found.best else best}: no agreement with the paper's order is "
            "shown, and so few rows cannot show one."
        )
    return f"{column}: {by_chance}: no agreement with the paper's order is shown."


def sentences(result: Result) -> list[str]:
    """Return what the statistics say, a paragraph each: orders, directions, noise between seeds, power laws."""
    found = [_order_in_full(each, column) for column, each in orders_of(result).items()]
    compared = signs(result)
    if compared:
        found.append(_signs(result, compared))
    noise = _noise(result)
    return [*found, *([noise] if noise else []), *(_fit(fit) for fit in fits(result))]


def _order_in_full(found: Order, column: str) -> str:
    how = "all their orders" if len(found.rows) <= EXACT_UP_TO else "100,000 orders drawn at random"
    return (
        f"{_order(found, column)} Spearman's correlation is {found.spearman:.2f}, Kendall's {found.kendall:.2f}; of "
        f"{how}, 95 % have a Spearman's between {found.low:.2f} and {found.high:.2f}."
    )


def _signs(result: Result, compared: Sequence[Sign]) -> str:
    same = [sign for sign in compared if sign.same]
    clear = [sign for sign in compared if sign.ours.shows]
    agree = sum(sign.same for sign in clear)
    number = len(compared)
    text = (
        f"Of {number} difference{'s' * (number != 1)} to {result['base']} that the paper has, too, {len(same)} "
        f"{'has' if len(same) == 1 else 'have'} the paper's direction (a coin would give about {significant(number / 2, 2)})."
    )
    if not clear:
        return f"{text} None of ours stands out from the noise between seeds."
    which = "all of these" if agree == len(clear) else f"{agree} of these"
    which = which if len(clear) > 1 else "it"
    has = "have" if which != "it" and agree != 1 else "has"
    if len(clear) == 1 and not agree:
        which, has = "it", "does not have"
    return f"{text} {len(clear)} of ours stand{'s' * (len(clear) == 1)} out from the noise between seeds, and {which} {has} the paper's direction."


def _noise(result: Result) -> str:
    """What is said of differences that do not show: how many seeds it would take to see them."""
    every = [(column, row, found) for column in judged_columns(result) for row in result["rows"]
             if (found := difference(result, column, row)) is not None]  # fmt: skip
    if every and all(found.low is None for _, _, found in every):
        return "With a single seed nothing tells a difference from noise." if len(result["seeds"]) == 1 else ""
    hidden = [(column, row, found) for column, row, found in every if found.shows is False and found.needed]
    if not hidden:
        return ""
    column, row, least = min(hidden, key=lambda entry: entry[2].needed)
    most = max(found.needed for _, _, found in hidden)
    if len(hidden) == 1:
        return f"The difference of {row} in {column} does not show: if it is as large as it seems, about {least.needed:,} seeds would show it in four of five cases."
    return (
        f"{len(hidden)} differences do not show. If they are as large as they seem, it would take about "
        f"{least.needed:,} seeds ({row} in {column}) to {most:,} to show each in four of five cases."
    )


def _fit(fit: Fit) -> str:
    moves = "falls" if fit.slope < 0 else "rises"
    band = "" if fit.low is None else f" (95 % band of bootstrap samples: {fit.low:.3g} to {fit.high:.3g})"
    text = (
        f"{fit.name}: over {len(fit.rows)} rows {fit.column} {moves} with {_ARTICLES.get(fit.x, fit.x)} to the power "
        f"{abs(fit.slope):.3g}{band}"
    )
    if fit.paper is None:
        return f"{text}."
    if fit.holds_paper is None:
        return f"{text}; the paper's exponent is {fit.paper:.3g}, and so few sizes give no band to judge it by."
    return f"{text}; the paper's exponent is {fit.paper:.3g}, {'inside' if fit.holds_paper else 'outside'} that band."


# What it cost, and how it is done again.


def cost_line(result: Result) -> str:
    """What all runs cost together, in a sentence."""
    costs, runs = (
        result["costs"],
        {trial for rows in result["trials"].values() for each in rows.values() for trial in each},
    )
    number = len(runs - {None})
    if not costs["hours"] and not costs["energy_kwh"]:
        return f"{number} run{'s' * (number != 1)}; what they cost was not measured."
    return (
        f"{number} run{'s' * (number != 1)} took {duration(costs['hours'] * 3600)} of training "
        f"({duration(costs['device_hours'] * 3600)} of devices), {energy(costs['energy_kwh'])} and "
        f"{mass(costs['emissions_kg'])} CO₂eq."
    )


def command(result: Result) -> str:
    """The command that makes it again; DATA stands for the folder of the data sets."""
    words = ["jaxformer", "reproduce", result["name"], f"--scale={result['scale']}"]
    words += [f"--data={result['data']}"] if result["data"] else []
    return shlex.join([*words, *_chosen(result)])


def _chosen(result: Result) -> Iterator[str]:
    """Yield the words of the first command that choose rows and seeds."""
    given = shlex.split(result["command"])
    for word, following in zip(given, [*given[1:], ""], strict=True):
        name, equals, _ = word.partition("=")
        if name in ("--rows", "--seeds"):
            yield word if equals else f"{word}={following}"


def check_command(result: Result) -> str:
    """The command that trains a part of it again and compares."""
    data = f" --data={shlex.quote(result['data'])}" if result["data"] else ""
    return f"jaxformer reproduce check docs/results/{result['name']}.json{data}"


def facts(result: Result) -> str:
    """When, on what and with what it was made, on one line."""
    device, packages = result["device"], result["packages"]
    parts = [
        result["created"][:10],
        f"{result['scale']} scale",
        f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)}",
    ]
    if device:
        parts.append(" ".join(str(device[key]) for key in ("count", "kind") if key in device) + " device")
    parts += [f"jaxformer {result['version']}", *(f"jax {packages['jax']}" for _ in [0] if "jax" in packages)]
    return ", ".join(parts + ([f"commit {result['git_revision'][:7]}"] if result["git_revision"] else []))

"""What a reproduction says, in sentences (see `reproduction` for what it holds)."""

import shlex
from collections.abc import Iterator, Mapping

from jaxformer.report.reproduction import Result
from jaxformer.report.reproduction_statistics import (
    LEVEL,
    Fit,
    Order,
    difference,
    fits,
    judged_columns,
    order,
    shown_columns,
    signs,
    values_of,
)
from jaxformer.report.study import DONE, RUNNING, WAITING
from jaxformer.tables import duration, energy, mass, significant

_SIZES = {"parameters": "number of parameters", "tokens": "number of training tokens", "flops": "training FLOPs"}


def title(result: Result) -> str:
    """The paper and its table, as a heading: "BERT (Devlin et al. 2018), Table 5, page 8"."""
    return f"{result['paper']}, {result['place']}"


# The finding.


def headline(result: Result) -> str:
    """Return what was found in a sentence: as much as the numbers show, and no more. Another one follows where it may
    still change."""
    states = [row["state"] for row in result["rows"].values()]
    left = states.count(RUNNING) + states.count(WAITING)
    unfinished = f" {left} of {left + states.count(DONE)} rows are not done yet." if left else ""
    return f"{_finding(result)}{unfinished}"


def _finding(result: Result) -> str:
    if not any(values_of(result, column, row) for row in result["rows"] for column in shown_columns(result)):
        return "Nothing has been measured yet."
    if result["scale"] == "smoke":
        return (
            "This is the smoke scale, whose models are too small and too briefly trained to learn: it shows that every "
            "run of the table works, and says nothing about the question."
        )
    orders, laws = orders_of(result), fits(result)
    if not orders and laws:
        return _sentence("; ".join(_law(fit) for fit in laws))
    if not orders:
        return _sentence(_shown(result))
    return _sentence("; ".join(filter(None, [_clear_signs(result), _agreement(result, orders)])))


def _shown(result: Result) -> str:
    """What is said where there is no order of the paper's to compare with."""
    found = [
        each
        for column in judged_columns(result)
        for row in result["rows"]
        if (each := difference(result, column, row)) is not None
    ]
    why = "no two rows have both a result and a number of the paper's, so there is no order to compare"
    if all(each.seeds == 1 for each in found):
        return why
    clear = sum(each.shows is True for each in found)
    return (
        f"{clear or 'none'} of {len(found)} difference{'s' * (len(found) != 1)} to {result['base']} "
        f"stand{'s' * (clear < 2)} out from the noise between seeds; {why}"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def orders_of(result: Result) -> dict[str, Order]:
    """Return {column: how our order of rows agrees with the paper's} of the columns in which both have one."""
    return {column: found for column in judged_columns(result) if (found := order(result, column)) is not None}


def share(part: float) -> str:
    """A share in percent, as exact as a reader needs it: 17 %, 0.8 %, less than 0.01 %."""
    return "less than 0.01 %" if part < 1e-4 else f"{significant(100 * part, 2 if part < 0.995 else 3)} %"


def _agreement(result: Result, orders: Mapping[str, Order]) -> str:
    """What is said of the order of rows: in the mean over columns where there is one, else in every column."""
    means = [column for column in orders if "mean_of" in result["columns"][column]]
    if len(orders) == 1 or means:
        column = means[0] if means else next(iter(orders))
        return _order(orders[column], column)
    agree = [column for column in orders if orders[column].agrees]
    if not agree:
        nearest = min(orders, key=lambda column: orders[column].chance)
        found = orders[nearest]
        return (
            f"no agreement with the paper's order of rows is shown in any of {len(orders)} columns (chance alone "
            f"orders {len(found.rows)} rows at least as well as the nearest, {nearest}, in {share(found.chance)} of "
            "cases)"
        )
    return (
        f"our order of the rows agrees with the paper's in {len(agree)} of {len(orders)} columns ({', '.join(agree)}); "
        f"chance alone brings about {LEVEL * sum(found.can_show for found in orders.values()):.2g} on average"
    )


def _order(found: Order, column: str) -> str:
    number = len(found.rows)
    if found.agrees:
        return (
            f"our order of the {number} rows agrees with the paper's in the column {column} (a rank correlation of "
            f"{found.spearman:.2f}, which chance alone reaches in {share(found.chance)} of cases)"
        )
    if found.contradicts:
        return (
            f"our order of the {number} rows contradicts the paper's in the column {column} (a rank correlation of "
            f"{found.spearman:.2f}, as low by chance alone in {share(found.reverse)} of cases)"
        )
    few = "" if found.can_show else "; so few rows cannot show one"
    return (
        f"no agreement with the paper's order of rows is shown in the column {column} (chance alone orders {number} "
        f"rows at least as well in {share(found.chance)} of cases{few})"
    )


def _clear_signs(result: Result) -> str:
    """What is said of the differences that stand out from the noise; "" where the paper has none to compare with."""
    compared, base = signs(result), result["base"]
    if not compared:
        return ""
    if all(sign.ours.seeds == 1 for sign in compared):
        return "with a single seed no difference can be told from noise"
    clear = [sign for sign in compared if sign.ours.shows]
    same, number = sum(sign.same for sign in clear), len(clear)
    if not clear:
        which = f"none of the {len(compared)} differences" if len(compared) > 1 else "no difference"
        return f"{which} to {base} stands out from the noise between seeds"
    if number == 1:
        return (
            f"the only difference to {base} that stands out from the noise between seeds, {clear[0].row}'s in "
            f"{clear[0].column}, {'has' if same else 'does not have'} the paper's direction"
        )
    of_all = "both" if number == 2 else f"all {number}"
    how = of_all if same == number else f"{same or 'none'} of the {number}"
    return (
        f"{how} differences to {base} that stand out from the noise between seeds "
        f"ha{'s' if same < 2 else 've'} the paper's direction"
    )


def sentences(result: Result) -> list[str]:
    """Return what the statistics say beside the tables, a paragraph each: directions, noise, power laws."""
    laws = fits(result)
    found = [_signs(result), _noise(result), *(_sentence(_law(fit)) for fit in laws)]
    if any(fit.low is not None for fit in laws):
        found.append("A band holds the exponents of 95 % of bootstrap samples, which draw rows, and seeds within them.")
    return [text for text in found if text]


def _signs(result: Result) -> str:
    compared = signs(result)
    if not compared:
        return ""
    number, same = len(compared), sum(sign.same for sign in compared)
    text = (
        f"Of {number} difference{'s' * (number != 1)} to {result['base']} that the paper has, too, {same} "
        f"ha{'s' if same == 1 else 've'} the paper's direction; tossing a coin gives {number / 2:g} on average."
    )
    clear = sum(sign.ours.shows is True for sign in compared)
    if all(sign.ours.seeds == 1 for sign in compared):
        return f"{text} With a single seed none can be told from noise."
    return (
        f"{text} {clear or 'None'} of them stand{'s' * (clear < 2)} out from the noise between seeds; noise alone lets "
        f"about one in {round(1 / LEVEL)}."
    )


def _noise(result: Result) -> str:
    """What is said of differences that do not show: how many seeds it would take to see them."""
    hidden = [
        (found.needed, f"{row} in {column}")
        for column in judged_columns(result)
        for row in result["rows"]
        if (found := difference(result, column, row)) is not None and found.shows is False and found.needed
    ]
    if not hidden:
        return ""
    (least, where), most = min(hidden), max(hidden)[0]
    if len(hidden) == 1:
        return (
            f"One difference, that of {where}, does not show. If it is as large as it seems, about {least:,} seeds "
            "would show it in four of five cases."
        )
    return (
        f"{len(hidden)} differences do not show. To show each in four of five cases, if it is as large as it seems, "
        f"would take from about {least:,} ({where}) to {most:,} seeds."
    )


def _law(fit: Fit) -> str:
    text = (
        f"{fit.name}: {fit.column} {'falls' if fit.slope < 0 else 'rises'} as the {_SIZES.get(fit.x, fit.x)} to the "
        f"power {significant(fit.slope)}"
    )
    paper = "" if fit.paper is None else f"the paper's {fit.slope_of(fit.paper):.3g}"
    if fit.low is None or fit.high is None:
        few = f"{len(fit.rows)} rows do not tell how far off that may be"
        return f"{text} ({'; '.join(filter(None, [few, paper and f'{paper} stands beside it']))})"
    band = f"95 % band {significant(fit.low)} to {significant(fit.high)}"
    where = f"; {paper} lies {'inside' if fit.holds_paper else 'outside'}" if paper else ""
    return f"{text} ({band}{where})"


def departures(result: Result) -> list[str]:
    """Return where it is not the paper's experiment: the table's notes, and columns that this scale does not have."""
    missing: dict[str, list[str]] = {}
    for name, column in result["columns"].items():
        if "missing" in column:
            missing.setdefault(column["missing"].removesuffix("."), []).append(name)
    return [
        *result["notes"],
        *(
            f"The paper's column{'s' * (len(names) > 1)} {', '.join(names)} ha{'ve' if len(names) > 1 else 's'} no "
            f"counterpart at this scale: {why}."
            for why, names in missing.items()
        ),
    ]


# What it cost, and how it is done again.


def cost_line(result: Result) -> str:
    """What all runs cost together, in a sentence."""
    costs = result["costs"]
    trials = (trial for rows in result["trials"].values() for each in rows.values() for trial in each)
    number = len({*trials} - {None})
    if not costs["hours"] and not costs["energy_kwh"]:
        return f"{number} run{'s' * (number != 1)}; what they cost was not measured."
    return (
        f"{number} run{'s' * (number != 1)} took {duration(costs['hours'] * 3600)} of training "
        f"({duration(costs['device_hours'] * 3600)} of devices), {energy(costs['energy_kwh'])} and "
        f"{mass(costs['emissions_kg'])} CO₂eq."
    )


def command(result: Result) -> str:
    """The command that makes it again."""
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
    data = [f"--data={result['data']}"] if result["data"] else []
    return shlex.join(["jaxformer", "reproduce", "check", f"docs/results/{result['name']}.json", *data])


def again(result: Result) -> str:
    """What the two commands do."""
    where = f" {result['data']} is the folder of the data sets (docs/reproducing.md)." if result["data"] else ""
    return f"The first command trains all of it anew, the second a part and compares it with these numbers.{where}"


def facts(result: Result) -> str:
    """When, on what and with what it was made, on one line."""
    device, packages, seeds = result["device"], result["packages"], len(result["seeds"])
    parts = [f"{result['created'][:10]}", f"{result['scale']} scale", f"{seeds} seed{'s' * (seeds > 1)}"]
    if {"count", "kind"} <= device.keys():
        parts.append(f"{device['count']} {device['kind']} device{'s' * (device['count'] != 1)}")
    parts.append(f"jaxformer {result['version']}")
    parts += [f"jax {packages['jax']}"] if "jax" in packages else []
    parts += [f"commit {result['git_revision'][:7]}"] if result["git_revision"] else []
    return ", ".join(parts)

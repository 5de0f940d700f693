"""A sweep on the terminal: its table, what it cost, and its best point."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxformer.report.study import DONE, FAILED, OVER, PRUNED, RUNNING, Sweep, SweepPoint, seconds_left
from jaxformer.tables import DASH, duration, energy, mass, metric, print_paragraph, roomy, table, table_width


def number(value: Any) -> str:
    """A value of a searched key, in as few digits as say it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_spread(point: SweepPoint, name: str) -> str:
    """The mean of a point's metric, with its standard deviation over seeds; of one that is not finished, what single
    runs gave or had reached, in parentheses."""
    mean, spread = point.mean(name), point.spread(name)
    if mean is None:
        values = point.found(name) + point.reached(name)
        return f"({', '.join(map(metric, values))})" if values else DASH
    return metric(mean) if spread is None else f"{metric(mean)} ± {spread:.2g}"


def headings_and_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the table of a sweep's points: what was searched, what each gave, how far it is, and what it cost."""
    many = len(sweep.record["seeds"]) > 1
    headings = [*sweep.keys, *sweep.metrics, *(["Seeds"] if many else []), "State", "Step", "Hours", "Energy"]
    rows = []
    for point in sweep.points:
        costs, done = sweep.costs(point.trials), sum(trial.state == DONE for trial in point.trials)
        row = [number(point.values[key]) if key in point.values else DASH for key in sweep.keys]
        row += [with_spread(point, name) for name in sweep.metrics]
        row += [f"{done} of {point.wanted}"] if many else []
        step = "/".join(str(trial.step) for trial in point.trials)
        measured = any(trial.emissions.segments for trial in point.trials)
        row += [point.state, step, f"{costs['hours']:.3g}", energy(costs["energy_kwh"]) if measured else DASH]
        rows.append(row)
    return headings, rows


def sweep_table(sweep: Sweep) -> Table:
    """Return the table of a sweep's points for the terminal."""
    headings, rows = headings_and_rows(sweep)
    shown = table()
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "State" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def progress_line(sweep: Sweep, at_once: int = 1) -> str:
    """How far a sweep is: runs over and running, the time that is left, the energy so far."""
    states = [trial.state for trial in sweep.trials]
    over = sum(state in OVER for state in states)
    parts = [f"{over} of {sweep.expected} runs are over"]
    parts += [f"{count} {state}" for state in (RUNNING, PRUNED, FAILED) if (count := states.count(state))]
    left = seconds_left(sweep, at_once)
    if left and over < sweep.expected:
        parts.append(f"about {duration(left)} left")
    costs = sweep.costs()
    if costs["energy_kwh"]:
        parts.append(f"{energy(costs['energy_kwh'])} so far")
    return ", ".join(parts)


def cost_line(sweep: Sweep) -> str:
    """What the whole sweep cost, beside what the best point alone cost."""

    def told(costs: dict[str, float]) -> str:
        words = f"{duration(costs['hours'] * 3600)} of runs, {duration(costs['device_hours'] * 3600)} of devices"
        return f"{words}, {energy(costs['energy_kwh'])}, {mass(costs['emissions_kg'])} CO2eq"

    line = f"The sweep cost {told(sweep.costs())}"
    if sweep.wall_seconds:
        line += f", in {duration(sweep.wall_seconds)}"
    if sweep.best is not None:
        line += f"; its best point alone {told(sweep.costs(sweep.best.trials))}"
    return f"{line}."


def failures(sweep: Sweep) -> list[str]:
    """One line for every run that failed for good, with its own last words."""
    return [
        f"{trial.path.name} failed {trial.record['failures'] or trial.record['starts']} times: {trial.record['error']}"
        for trial in sweep.trials
        if trial.state == FAILED
    ]


def print_sweep(sweep: Sweep, console: Console | None = None, at_once: int = 1) -> None:
    """Print a sweep's table, how far it is, what it cost, and what failed."""
    headings, rows = headings_and_rows(sweep)
    columns: list[Sequence[str]] = [list(column) for column in zip(headings, *rows, strict=True)]
    console = roomy(console or Console(), table_width(columns))
    console.print(sweep_table(sweep))
    for line in [progress_line(sweep, at_once), cost_line(sweep), *failures(sweep)]:
        print_paragraph(console, line)


def print_seeds(sweep: Sweep, console: Console | None = None) -> None:
    """Print the mean and the spread over seeds of everything that the only point of a study gave at its last
    evaluation."""
    console = roomy(console or Console())
    shown = table()
    for heading in ("Metric", "Mean", "Spread", *(f"seed {seed}" for seed in sweep.record["seeds"])):
        shown.add_column(heading, justify="left" if heading == "Metric" else "right", no_wrap=True)
    for point in sweep.points[:1]:
        names = dict.fromkeys(name for trial in point.trials for name in trial.metrics if name.startswith("eval/"))
        for name in names:
            mean, spread = point.mean(name), point.spread(name)
            each = {trial.record["seed"]: trial.metrics.get(name) for trial in point.trials}
            cells = [mean, spread, *(each.get(seed) for seed in sweep.record["seeds"])]
            shown.add_row(name, *(DASH if cell is None else metric(cell) for cell in cells))
    console.print(shown)
    for line in [cost_line(sweep), *failures(sweep)]:
        print_paragraph(console, line)

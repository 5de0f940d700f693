"""The figures of a report, each once as vector graphics for the page and as PNG beside it.

Colours are those of Okabe and Ito, told apart with every kind of colour vision; marks differ too. In the page's SVG
they are replaced by CSS variables, so one figure serves the light and the dark page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from jaxformer.errors import disk_errors
from jaxformer.report.read import Run
from jaxformer.tables import energy_scale

# CSS variable -> colour on white. No two may be equal: the page finds them by their value.
COLOURS: Mapping[str, str] = {
    "ink": "#1c1f24",
    "muted": "#6a717c",
    "grid": "#dfe2e7",
    "ground": "#fffffe",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#e69f00",
    "c6": "#56b4e9",
}
SERIES = tuple(value for name, value in COLOURS.items() if name.startswith("c"))
MARKERS = ("o", "s", "^", "D", "v", "P")
# Above this, only the best runs get a colour and an entry in the legend; the others are grey.
MOST_COLOURED, BEST = 8, 5
STYLE: Any = {  # matplotlib types its settings one by one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.facecolor": COLOURS["ground"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": COLOURS["ground"],
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
}
RUN = "run:"  # marks what a figure draws for one run
WIDTH = 10.0  # inches; the page scales figures to its own width
STEPS = StrMethodFormatter("{x:,.0f}")
SHARES = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")


@dataclass(frozen=True)
class Plot:
    """A finished figure: `svg` for the page, `title` and `caption` for the reader."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Look:
    """How one run is drawn everywhere in a report."""

    colour: str
    line: Literal["-", "--"]
    marker: str
    is_best: bool = True

    @property
    def order(self) -> int:
        return 3 if self.is_best else 2


def plots_of(runs: Sequence[Run], folder: Path, suffix: str) -> list[Plot]:
    """Draw runs of one objective or task: loss, evaluation metrics, throughput, what the energy bought."""
    looks = _looks(runs)
    drawn = [
        _loss(runs, looks),
        _evaluation(runs, looks),
        _throughput(runs, looks),
        _cost(runs, looks),
    ]
    return [
        save(figure, folder, f"{name}-{suffix}", title, caption, about=suffix.replace("_", " "))
        for name, title, caption, figure in filter(None, drawn)
    ]


Drawn = tuple[str, str, str, Figure] | None


def _loss(runs: Sequence[Run], looks: Mapping[str, Look]) -> Drawn:
    with matplotlib.rc_context(STYLE):
        axes_of: list[tuple[str, str | None]] = [("Step", None)]
        if any(run.series("train/tokens")[0] for run in runs):
            axes_of.append(("Tokens seen", "train/tokens"))
        figure, panels = panels_of(len(axes_of), height=3.7)
        drawn = False
        for panel, (label, axis) in zip(panels, axes_of, strict=True):
            for run in runs:
                look = looks[run.name]
                for key, is_evaluation in (("train/loss", False), ("eval/loss", True)):
                    xs, ys = run.series(key) if axis is None else run.against(key, axis)
                    drawn = drawn or bool(xs)
                    _line(panel, run, xs, ys, look, is_evaluation)
            panel.set_xlabel(label)
            panel.xaxis.set_major_formatter(STEPS if axis is None else EngFormatter(sep=" "))
        panels[0].set_ylabel("Loss (nats)")
        if not drawn:
            return None
        _legend(figure, runs, looks, with_training=True)
    caption = "Training light, evaluation on held-out data marked." + _others(looks)
    return "loss", "Loss", caption, figure


def _evaluation(runs: Sequence[Run], looks: Mapping[str, Look]) -> Drawn:
    keys = dict.fromkeys(key for run in runs for key in run.keys() if key.startswith("eval/") and key != "eval/loss")
    # How many rows were judged stands in the table.
    shown = [key for key in keys if not key.endswith("examples") and any(run.series(key)[0] for run in runs)]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = panels_of(len(shown), height=3.0, per_row=3)
        for panel, key in zip(panels, shown, strict=True):
            for run in runs:
                _line(panel, run, *run.series(key), looks[run.name], is_evaluation=True)
            panel.set_title(metric_name(key))
            panel.set_xlabel("Step")
            panel.xaxis.set_major_formatter(STEPS)
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # no step stands between two
            if key.endswith("perplexity"):
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
                panel.yaxis.set_minor_locator(NullLocator())
            elif is_share(key):
                panel.yaxis.set_major_formatter(SHARES)
        _legend(figure, runs, looks)
    return "evaluation", "Evaluation", "Metrics on held-out data." + _others(looks), figure


def _throughput(runs: Sequence[Run], looks: Mapping[str, Look]) -> Drawn:
    keys = [("train/tokens_per_second", "Tokens per second"), ("train/mfu", "Model FLOP utilisation")]
    shown = [(key, label) for key, label in keys if any(run.series(key)[0] for run in runs)]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = panels_of(len(shown), height=2.9)
        for panel, (key, label) in zip(panels, shown, strict=True):
            for run in runs:
                look = looks[run.name]
                panel.plot(
                    *run.series(key),
                    color=look.colour,
                    linestyle=look.line,
                    zorder=look.order,
                    linewidth=1.3 if look.is_best else 0.8,
                    alpha=1.0 if look.is_best else 0.6,
                    gid=RUN + run.name,
                )
            panel.set_xlabel("Step")
            panel.set_ylabel(label)
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_formatter(STEPS)
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # no step stands between two
            is_share = key == "train/mfu"
            panel.yaxis.set_major_formatter(SHARES if is_share else EngFormatter(sep=" "))
        _legend(figure, runs, looks)
    caption = "Speed of training, without evaluations and checkpoints." + _others(looks)
    return "throughput", "Throughput", caption, figure


def _cost(runs: Sequence[Run], looks: Mapping[str, Look]) -> Drawn:
    """Energy against the best evaluation loss: only worth a picture when there are runs to compare."""
    points = [(run, run.emissions.energy_kwh, min(run.series("eval/loss")[1], default=None)) for run in runs]
    kept = [(run, kwh, loss) for run, kwh, loss in points if run.emissions.segments and loss is not None]
    if len(kept) < 3:
        return None
    factor, unit = energy_scale(kwh for _, kwh, _ in kept)
    with matplotlib.rc_context(STYLE):
        figure, (panel,) = panels_of(1, height=3.2)
        for run, kwh, loss in kept:
            look = looks[run.name]
            panel.plot(
                [kwh * factor],
                [loss],
                marker=look.marker,
                color=look.colour,
                linestyle="none",
                markersize=7,
                gid=RUN + run.name,
            )
        panel.set_xlabel(f"Energy of the run ({unit})")
        panel.set_ylabel("Best evaluation loss (nats)")
        panel.set_xlim(left=0)
        _legend(figure, [run for run, _, _ in kept], looks)
    return "cost", "What the energy bought", "Lower and further left is better." + _others(looks), figure


def _line(panel: Axes, run: Run, xs: Sequence[float], ys: Sequence[float], look: Look, is_evaluation: bool) -> None:
    """A training curve (light) or an evaluation curve (marked at each evaluation, if they are not too many)."""
    if not is_evaluation:
        panel.plot(
            xs,
            ys,
            color=look.colour,
            alpha=0.38 if look.is_best else 0.15,
            linewidth=1.0,
            zorder=look.order,
            gid=RUN + run.name,
        )
        return
    panel.plot(
        xs,
        ys,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markevery=max(1, len(xs) // 20),
        zorder=look.order + 2,
        alpha=1.0 if look.is_best else 0.6,
        linewidth=1.6 if look.is_best else 0.8,
        markersize=4.5 if look.is_best else 2.5,
        gid=RUN + run.name,
    )


def _looks(runs: Sequence[Run]) -> dict[str, Look]:
    """A colour and a mark per run; where runs are many, only for those with the best evaluation (or training) loss."""

    def final(run: Run) -> float:
        losses = run.series("eval/loss")[1] or run.series("train/loss")[1][-1:]
        return min(losses, default=float("inf"))

    grey = Look(COLOURS["muted"], "-", ".", is_best=False)
    coloured = list(runs) if len(runs) <= MOST_COLOURED else sorted(runs, key=final)[:BEST]
    looks = {run.name: grey for run in runs}
    for number, run in enumerate(coloured):
        line: Literal["-", "--"] = "-" if number < len(SERIES) else "--"
        looks[run.name] = Look(SERIES[number % len(SERIES)], line, MARKERS[number % len(MARKERS)])
    return looks


def _others(looks: Mapping[str, Look]) -> str:
    """What the caption says about the grey runs."""
    grey = sum(not look.is_best for look in looks.values())
    return f" The {BEST} runs with the lowest loss are coloured, the other {grey} grey." if grey else ""


def panels_of(number: int, height: float, per_row: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels, `per_row` beside each other at most; a single panel does not fill the width."""
    columns = min(number, per_row)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 0.72 * WIDTH, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[number:]:
        spare.set_axis_off()
    for panel in panels[:number]:
        panel.xaxis.set_major_locator(MaxNLocator(6))
    return figure, panels[:number]


def _legend(figure: Figure, runs: Sequence[Run], looks: Mapping[str, Look], with_training: bool = False) -> None:
    """One legend below the panels: the coloured runs, what light and marked lines are, how many runs are grey."""
    best = [run for run in runs if looks[run.name].is_best]
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=_short(run.name))
        for run in best
        for look in (looks[run.name],)
    ]
    grey = len(runs) - len(best)
    if grey:
        handles.append(Line2D([], [], color=COLOURS["muted"], linewidth=0.8, label=f"{grey} other runs"))
    if with_training:
        handles.append(Line2D([], [], color=COLOURS["muted"], alpha=0.5, linewidth=1.0, label="training"))
        handles.append(Line2D([], [], color=COLOURS["muted"], marker="o", label="evaluation"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 12) // (longest + 8)))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def _short(name: str, limit: int = 48) -> str:
    """A run's name as matplotlib shows it literally: no formula between dollars, no label hidden by an underscore."""
    name = name if len(name) <= limit else f"…{name[1 - limit :]}"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def metric_name(key: str) -> str:
    """The heading of a logged metric: "eval/token_accuracy" is "Token accuracy"."""
    words = key.removeprefix("eval/").replace("_", " ")
    return {"f1": "F1 (macro)", "bleu": "BLEU"}.get(words, words[:1].upper() + words[1:])


def is_share(key: str) -> bool:
    """Whether a logged metric is a share, 0 to 1, and reads well in percent."""
    return key.endswith(("accuracy", "f1", "f1_binary", "exact_match", "_em", "precision", "recall"))


def save(figure: Figure, folder: Path, name: str, title: str, caption: str, about: str = "") -> Plot:
    """Write `name`.png into `folder`, headed by `title` and what it is about, and return the plot with its SVG.

    Raises `UserError` when the disk is full.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), disk_errors(folder):
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        # The page has headings of its own; the picture alone needs one.
        heading = f"{title}: {about}" if about else title
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.savefig(png, format="png", dpi=160)
        (folder / f"{name}.png").write_bytes(png.getvalue())
    return Plot(title, caption, _inline(svg.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Make matplotlib's SVG part of a page: sized by it, in its colours, with the run's name when pointed at."""
    svg = svg[svg.index("<svg") :]
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    share = min(1.0, width / (72 * WIDTH))
    head = f'<svg role="img" aria-label="{escape(title)}" style="width:{100 * share:.0f}%" '
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", head, 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")

    def group(match: re.Match[str]) -> str:
        """Ids must be unique in a page, so only the name of a run is kept, as what the pointer shows."""
        name = match[1]
        return f'<g class="run"><title>{name.removeprefix(RUN)}</title>' if name.startswith(RUN) else "<g>"

    return re.sub(r'<g id="([^"]*)">', group, svg)

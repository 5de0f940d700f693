"""The catalogue of presets: what each of the eight systems has, in sizes and exact parameter counts, and when it came.

Counts follow from the models: none is written down here. Encoder-only models are counted as in their papers: the body
without the vocabulary head. BERT's body ends in the pooler, which pretraining trains (next sentence); DistilBERT's does
not, its pooler is the classifier's.
"""

import datetime
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from jaxformer.errors import UserError, disk_errors
from jaxformer.models import SYSTEMS, Execution, Model, TransformerConfig
from jaxformer.tables import model_size, print_paragraph, table, table_width
from jaxformer.trees import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = dict[str, Any]

COUNTED = (
    "Parameters: all of them, a tied vocabulary projection once. Of encoder-only models, as in their papers, the body "
    "(BERT's with the pooler) without the vocabulary head. Context: the longest sequence, in tokens."
)
_HEAD = "next_sentence"


def entries() -> list[Entry]:
    """Return the presets, system by system in order of publication, as plain values with exact counts."""
    return [
        {
            "name": name,
            "system": system.title,
            "family": preset["family"],
            **{size: preset[size] for size in ("num_layers", "d_model", "num_heads", "head_dim", "d_ff")},
            "vocab_size": preset["vocab_size"],
            "context": preset["max_length"],
            "parameters": count(preset),
            "paper": system.paper,
            "published": system.published,
        }
        for system in sorted(SYSTEMS, key=lambda system: system.published)
        for name, preset in system.presets.items()
    ]


def count(preset: Mapping[str, Any]) -> int:
    """Return the exact number of parameters of a preset, counted as its paper does."""
    return _count(TransformerConfig(**preset))


@functools.cache
def _count(config: TransformerConfig) -> int:
    is_body = config.family == "encoder_only"
    heads = ((_HEAD, 2, "row"),) if is_body and config.token_types else ()
    # Scanned layers are traced once, however many there are.
    model = Model(config, Execution(unroll=1), heads, predicts_tokens=not is_body)
    return sum(math.prod(leaf.shape) for path, leaf in flatten(model.shapes).items() if _HEAD not in path.split("/"))


def print_table(listed: Sequence[Entry], console: Console | None = None) -> None:
    """Print one table per system, all with the same columns; 80 characters wide."""
    console = console or Console()
    columns = {
        "Model": [entry["name"] for entry in listed],
        "Layers": [str(entry["num_layers"]) for entry in listed],
        "d_model": [f"{entry['d_model']:,}" for entry in listed],
        "Heads": [str(entry["num_heads"]) for entry in listed],
        "d_ff": [f"{entry['d_ff']:,}" for entry in listed],
        "Parameters": [f"{entry['parameters']:,}" for entry in listed],
        "Context": [f"{entry['context']:,}" for entry in listed],
    }
    widths = {heading: max(map(len, (heading, *cells))) for heading, cells in columns.items()}
    # In a terminal that is narrower still the lines wrap: cut numbers would be wrong ones.
    console.width = max(console.width, table_width([heading, *cells] for heading, cells in columns.items()))
    for group in _by_system(listed).values():
        first = listed[group[0]]
        about = f" · {first['family']} · {first['published']} · {first['paper']}"
        print_paragraph(console, Text.assemble((first["system"], "bold"), about))
        shown = table()
        for heading, width in widths.items():
            shown.add_column(heading, justify="left" if heading == "Model" else "right", width=width, no_wrap=True)
        for row in group:
            shown.add_row(*(cells[row] for cells in columns.values()))
        console.print(shown)
        console.print()
    print_paragraph(console, COUNTED, "dim")


def _by_system(listed: Sequence[Entry]) -> dict[str, list[int]]:
    """The places of each system's presets in the list."""
    groups: dict[str, list[int]] = {}
    for place, entry in enumerate(listed):
        groups.setdefault(entry["system"], []).append(place)
    return groups


# The picture.

FORMATS = (".png", ".svg", ".pdf")
# Wide enough, with the type as large as it is, for a slide of 16:9; as PNG 1920 x 1080.
_INCHES, _DPI = (40 / 3, 7.5), 144
_FAMILIES = {
    "encoder_decoder": "Encoder and decoder",
    "decoder_only": "Decoder only",
    "encoder_only": "Encoder only",
}
# Three systems came within four weeks: their labels keep out of each other's way. Elsewhere the name stands above the
# middle of its column, and sizes to the right.
_LABELS_LEFT_BELOW = {"DistilBERT"}
_NAME_TO_THE_RIGHT = {"BART"}
_LEAST_DAYS = 19  # between columns: as wide as a dot


def check_format(path: Path) -> None:
    """Raise `UserError` unless the ending of `path` names a format of pictures."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot={path}: the file must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def plot(listed: Sequence[Entry], path: Path) -> None:
    """Draw parameters over the day of publication into `path`, in the format that its ending names.

    Raises:
      UserError: another ending, or the file cannot be written.
    """
    check_format(path)
    import matplotlib  # here: the table does without

    from jaxformer.report import STYLE

    # Without dates and random ids the same picture is the same file.
    metadata = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix.lower()]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "models"}):
        figure = draw(listed)
        try:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=_DPI, metadata=metadata)
        except OSError as error:  # a folder stands where the file should, or a file where its folder should
            where = f"{error.filename}: " if error.filename and Path(error.filename) != path else ""
            why = str(error.strerror or error).lower()
            raise UserError(f"cannot write {path}: {where}{why}; choose another file") from error


def draw(listed: Sequence[Entry]) -> "Figure":
    """Return the picture: a column of dots for each system, its name, and its smallest and largest size in words."""
    from matplotlib.dates import date2num, num2date
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from jaxformer.report import COLOURS, MARKERS, SERIES

    looks: dict[str, dict[str, Any]] = {
        family: {"color": colour, "marker": marker, "markersize": 11, "markeredgecolor": COLOURS["ground"]}
        for family, colour, marker in zip(_FAMILIES, SERIES, MARKERS, strict=False)
    }
    figure = Figure(figsize=_INCHES)
    panel = figure.add_axes((0.07, 0.085, 0.91, 0.76))
    groups = _by_system(listed)
    days = [date2num(datetime.date.fromisoformat(listed[group[0]]["published"])) for group in groups.values()]
    places = apart(days, _LEAST_DAYS)
    for (name, group), day in zip(groups.items(), places, strict=True):
        counts = sorted(listed[row]["parameters"] for row in group)
        panel.plot([day] * len(counts), counts, linewidth=1.5, **looks[listed[group[0]]["family"]])
        _label(panel, name, day, counts, COLOURS)
    _axes(panel, days[0] - 130, days[-1] + 130)
    title = f"Parameters of Transformers, {num2date(days[0]).year} to {num2date(days[-1]).year}"
    figure.text(0.02, 0.93, title, fontsize=26, fontweight="bold")
    moved = math.ceil(max(abs(place - day) for place, day in zip(places, days, strict=True)))
    note = "Each system with all its sizes, on the day of its first publication"
    note += f"; close neighbours are moved apart, by up to {moved} days." if moved else "."
    figure.text(0.02, 0.88, note, fontsize=15, color=COLOURS["muted"])
    handles = [Line2D([], [], label=words, linestyle="none", **looks[name]) for name, words in _FAMILIES.items()]
    # In a row, for no line of the grid to run through it.
    panel.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=17, handletextpad=0.1)
    return figure


def apart(places: Sequence[float], least: float) -> list[float]:
    """Return rising places moved, as little as can be in the sum of squares, until neighbours are `least` apart."""
    # Without the distances that they must have, places may be equal but must not fall: those that do share their mean.
    blocks: list[tuple[float, int]] = []
    for number, place in enumerate(places):
        mean, size = place - number * least, 1
        while blocks and blocks[-1][0] > mean:
            other, others = blocks.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        blocks.append((mean, size))
    return [mean + number * least for number, mean in enumerate(mean for mean, size in blocks for _ in range(size))]


def _label(panel: "Axes", name: str, day: float, counts: Sequence[int], colours: Mapping[str, str]) -> None:
    """Write the name of a system, and its smallest and largest size beside them."""
    is_left, is_right = name in _LABELS_LEFT_BELOW, name in _NAME_TO_THE_RIGHT
    # Cased and uncased models are one size to the eye.
    for count in [counts[-1], *(counts[:1] if counts[0] < 0.8 * counts[-1] else ())]:
        panel.annotate(
            model_size(count), (day, count), (-12 if is_left else 12, 0), textcoords="offset points",
            ha="right" if is_left else "left", va="center_baseline", fontsize=15, color=colours["muted"],
            bbox={"facecolor": colours["ground"], "edgecolor": "none", "pad": 1},  # no line of the grid through digits
        )  # fmt: skip
    panel.annotate(
        name, (day, counts[-1]), (-12 if is_left else 12 if is_right else 0, -13 if is_left else 13),
        textcoords="offset points", ha="right" if is_left else "left" if is_right else "center",
        va="top" if is_left else "bottom", fontsize=18, fontweight="bold",
    )  # fmt: skip


def _axes(panel: "Axes", first: float, last: float) -> None:
    from matplotlib.dates import DateFormatter, MonthLocator
    from matplotlib.ticker import FuncFormatter, NullLocator

    panel.set_xlim(first, last)
    panel.xaxis.set_major_locator(MonthLocator((1, 7)))
    panel.xaxis.set_major_formatter(DateFormatter("%b %Y"))
    panel.set_yscale("log")
    panel.set_ylim(2e6, 6e11)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: model_size(value)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.tick_params(labelsize=16, length=0, pad=8)
    panel.tick_params(axis="x", length=6, pad=6)
    panel.grid(visible=False, axis="x")

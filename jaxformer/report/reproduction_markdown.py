"""A reproduction as a page of docs/results, and the list of all pages there: everything from the results' files."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxformer.errors import UserError, disk_errors
from jaxformer.report.plots import Plot
from jaxformer.report.reproduction import Result, read_result
from jaxformer.report.reproduction_plots import reproduction_plots
from jaxformer.report.reproduction_tables import (
    COSTS,
    DIFFERENCES,
    ORDERS,
    WORDS,
    Table,
    costs_table,
    differences_table,
    explained,
    orders_table,
    values_table,
)
from jaxformer.report.reproduction_words import (
    again,
    check_command,
    command,
    cost_line,
    departures,
    facts,
    headline,
    sentences,
    title,
)
from jaxformer.report.study import REPRODUCTION
from jaxformer.storage import write_json, write_lines

# Pages of docs/results that no reproduction made.
_OTHERS = {
    "bert-small": "a sweep of learning rate against batch size for `bert:small`, with successive halving",
    "finetuning": "what one small pretrained BERT reaches on SST-2, CoLA, RTE, STS-B, AG News, WNUT-17, CODAH and "
    "SQuAD, and a small Transformer in translation",
    "wikitext2": "the perplexity of a small GPT-2 on WikiText-2, in the units that papers use",
}


def write_result(result: Result, folder: Path) -> tuple[Result, dict[str, Plot]]:
    """Write into a folder what docs/results takes: NAME.json, the result itself, NAME.md, the page on it, and its
    pictures, NAME.png first. Return the result with its "meaning", and the pictures by the names of their files.

    Paragraphs of "meaning" that a person wrote into a NAME.json that is there stay.
    """
    name = result["name"]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    result = {**result, "meaning": result["meaning"] or _meaning(folder / f"{name}.json")}
    plots = reproduction_plots(result, folder)
    write_json(folder / f"{name}.json", result)
    write_lines(folder / f"{name}.md", result_markdown(result, *plots).splitlines())
    return result, plots


def _meaning(path: Path) -> list[str]:
    """Return the paragraphs of an earlier file of the same reproduction, [] where there is none that can be read."""
    with contextlib.suppress(UserError):
        return list(read_result(path)["meaning"])
    return []


def write_results_index(folder: Path) -> Path:
    """Write README.md of the results in a folder and return its path. Raises UserError for a damaged result."""
    paths = [path for path in sorted(folder.glob("*.json")) if f'"{REPRODUCTION}"' in path.read_text(encoding="utf-8")]
    pictures = [path.name for path in folder.glob("*.png")]
    write_lines(folder / "README.md", results_index(map(read_result, paths), pictures).splitlines())
    return folder / "README.md"


def result_markdown(result: Result, *pictures: str) -> str:
    """Return the page on a reproduction; `pictures` are files beside it."""
    blocks = [f"# {title(result)}", result["question"], f"**{headline(result)}**", *result["meaning"]]
    blocks += [f"![{title(result)}: ours beside the paper]({picture})" for picture in pictures]
    blocks += ["## Our values beside the paper's", _table(values_table(result)), explained(result)]
    headings, rows = differences_table(result)
    if rows:
        blocks += [f"## Differences to {result['base']}", _table((headings, rows)), DIFFERENCES]
    headings, rows = orders_table(result)
    if rows:
        blocks += ["## The order of the rows", _table((headings, rows)), ORDERS]
    if said := sentences(result):
        blocks += ["## What the numbers can tell", _list(said)]
    if departed := departures(result):
        blocks += ["## Where this is not the paper's experiment", _list(departed)]
    blocks += [
        "## To do it again",
        f"Made {facts(result)}.",
        f"    {command(result)}\n    {check_command(result)}",
        again(result),
    ]
    headings, rows = costs_table(result)
    blocks += ["## What it cost", cost_line(result), *([_table((headings, rows)), COSTS] if rows else [])]
    return "\n\n".join(blocks) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(made: Table) -> str:
    headings, rows = made
    words = {index for index, heading in enumerate(headings) if heading in WORDS}
    rule = ["---" if index in words else "---:" for index in range(len(headings))]
    return "\n".join(_line(cells) for cells in (headings, rule, *rows))


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def results_index(results: Iterable[Result], pictures: Iterable[str] = ()) -> str:
    """Return docs/results/README.md: an entry for each reproduction, with its finding and, of those among `pictures`
    (files there), its picture; and a line for each other page."""
    there = {*pictures}
    blocks = [
        "# Results",
        "What was measured with this library, and what it says. Every page is written from the JSON of the same name, "
        "which holds the numbers of each seed, the commands and the versions.",
    ]
    for result in results:
        name = result["name"]
        blocks += [f"## [{title(result)}]({name}.md)", f"{result['question']} {headline(result)}"]
        if f"{name}.png" in there:
            blocks.append(f'<a href="{name}.md"><img src="{name}.png" width="500" alt="{title(result)}"></a>')
    others = [f"[{name}]({name}.md): {what}" for name, what in _OTHERS.items()]
    return "\n\n".join([*blocks, "## Other measurements", _list(others)]) + "\n"

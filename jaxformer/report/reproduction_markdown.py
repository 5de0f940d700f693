"""A reproduction as a page of docs/results, and the list of all pages there: everything from the results' files."""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
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


def write_result(result: Result, folder: Path) -> tuple[Result, dict[str, Plot]]:
    """Write into a folder what docs/results takes: NAME.json, the result itself, NAME.md, the page on it, and its
    pictures, NAME.png first. Return the result with its "meaning", and the pictures by the names of their files.

    Paragraphs of "meaning" that a person wrote into a NAME.json that is there stay.
    """
    name = result["name"]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # The command as anyone gives it, without the paths of the machine on which it was given.
    result = {**result, "command": command(result), "meaning": result["meaning"] or _meaning(folder / f"{name}.json")}
    plots = reproduction_plots(result, folder)
    write_json(folder / f"{name}.json", result)
    write_lines(folder / f"{name}.md", result_markdown(result, *plots).splitlines())
    return result, plots


def _meaning(path: Path) -> list[str]:
    """Return the paragraphs of an earlier file of the same reproduction, [] where there is none that can be read."""
    with contextlib.suppress(UserError):
        return list(read_result(path)["meaning"])
    return []


def write_results(folder: Path) -> list[Path]:
    """Write the page and the pictures of every result in a folder anew, from its JSON, and README.md, which lists them
    and the other pages there; return what was written. Raises UserError for a folder without results, and for a
    damaged one."""
    paths = [path for path in sorted(folder.glob("*.json")) if f'"{REPRODUCTION}"' in path.read_text(encoding="utf-8")]
    if not paths:
        raise UserError(f"{folder} holds no result of a reproduction; copy STUDY/report/NAME.json into it")
    results = [read_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if path.stem != result["name"]:
            raise UserError(f"{path} holds a result of the name {result['name']}; call the file {result['name']}.json")
        write_result(result, folder)
    pictures = {path.name for path in folder.glob("*.png")}
    others = [path for path in sorted(folder.glob("*.md")) if path.with_suffix(".json") not in paths]
    titles = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in others}
    titles.pop("README", None)
    write_lines(folder / "README.md", results_index(results, pictures, titles).splitlines())
    return [*(path.with_suffix(".md") for path in paths), folder / "README.md"]


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


def results_index(results: Iterable[Result], pictures: Collection[str], others: Mapping[str, str]) -> str:
    """Return docs/results/README.md: an entry for each reproduction, with its finding and, of those among `pictures`
    (files there), its picture; and a line for each other page {name: its title}."""
    blocks = [
        "# Results",
        "What was measured with this library, and what it says. Every page is written from the JSON of the same name, "
        "which holds the numbers of each seed, the commands and the versions.",
    ]
    for result in results:
        name = result["name"]
        blocks += [f"## [{title(result)}]({name}.md)", f"{result['question']} {headline(result)}"]
        if f"{name}.png" in pictures:
            blocks.append(f'<a href="{name}.md"><img src="{name}.png" width="500" alt="{title(result)}"></a>')
    if others:
        blocks += ["## Other measurements", _list(f"[{said}]({name}.md)" for name, said in others.items())]
    return "\n\n".join(blocks) + "\n"

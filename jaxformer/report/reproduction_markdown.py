"""A reproduction as a page of docs/results, and the list of all pages there: everything from the results' files."""

from collections.abc import Iterable, Sequence

from jaxformer.report.reproduction import Result
from jaxformer.report.reproduction_tables import Table, differences_table, values_table
from jaxformer.report.reproduction_words import check_command, command, cost_line, facts, headline, sentences, title

# Pages of docs/results that no reproduction made.
_OTHERS = {
    "bert-small": "a sweep of learning rate against batch size for `bert:small`, with successive halving",
    "finetuning": "what one small pretrained BERT reaches on SST-2, CoLA, RTE, STS-B, AG News, WNUT-17, CODAH and SQuAD, "
    "and a small Transformer in translation",
    "wikitext2": "the perplexity of a small GPT-2 on WikiText-2, in the units that papers use",
}


def result_markdown(result: Result, picture: str = "") -> str:
    """Return the page on a reproduction; `picture` is a file beside it."""
    blocks = [f"# {title(result)}", result["question"], f"**{headline(result)}**", *result["meaning"]]
    if picture:
        blocks.append(f"![{title(result)}: ours beside the paper]({picture})")
    blocks += ["## Our values beside the paper's", _table(values_table(result)), explained(result)]
    headings, rows = differences_table(result)
    if rows:
        blocks += [f"## Differences to {result['base']}", _table((headings, rows)), DIFFERENCES]
    if said := sentences(result):
        blocks += ["## What the numbers can tell", _list(said)]
    if result["notes"]:
        blocks += ["## Where this is not the paper's experiment", _list(result["notes"])]
    blocks += [
        "## To do it again",
        f"Made on {facts(result)}.",
        f"    {command(result)}\n    {check_command(result)}",
        again(result),
        cost_line(result),
    ]
    return "\n\n".join(blocks) + "\n"


DIFFERENCES = (
    "Means of the differences between runs of the same seed, with 95 % intervals by Student's t. A difference shows if its "
    "interval leaves out zero; beside the others stands how many seeds would show it in four of five cases, were it as "
    "large as it seems."
)


def explained(result: Result) -> str:
    """Return what a reader of the table of values must know."""
    words = "Means over seeds ± their standard deviation." if len(result["seeds"]) > 1 else "A single seed."
    kind = "differences to its base row" if result["differences"] else "what it printed"
    return f"{words} The paper's numbers are {kind}, with its own models and data: ours are not meant to meet them."


def again(result: Result) -> str:
    """Return what the two commands do."""
    where = f" `{result['data']}` is the folder of the data sets (docs/reproducing.md)." if result["data"] else ""
    return f"The first trains all of it anew, the second a part, and compares that with this page's numbers.{where}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(made: Table) -> str:
    headings, rows = made
    words = {index for index, heading in enumerate(headings) if heading in ("Row", "State")}
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

"""Which objective trains which family of models, and why not where it does not. Follows from the objectives alone."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from jaxformer.objectives import NOT_PROVIDED, OBJECTIVES, TextToText
from jaxformer.tables import print_paragraph, roomy, table

Entry = dict[str, Any]
_KINDS: Mapping[str, Any] = OBJECTIVES
# As the objectives name them: the models' own list would bring JAX with it, and a table should not keep people waiting.
FAMILIES = tuple(dict.fromkeys(family for kind in _KINDS.values() for family in (*kind.families, *kind.refusals)))

IN_ONE_ROW = "*: source and target in one row, of which the target is predicted"


def entries() -> list[Entry]:
    """Return the objectives in their order, then those that are not provided: {family: None or why it cannot}."""
    provided = [
        {
            "name": name,
            "paper": kind.paper,
            "families": {
                family: None if family in kind.families else kind.refusals.get(family, "not among its families")
                for family in FAMILIES
            },
            "provided": True,
        }
        for name, kind in _KINDS.items()
    ]
    missing = [
        {"name": name, "paper": paper, "families": dict.fromkeys(FAMILIES, reason), "provided": False}
        for name, (paper, reason) in NOT_PROVIDED.items()
    ]
    return provided + missing


def refusals() -> dict[tuple[str, str], list[str]]:
    """Return {(family, reason): objectives that it keeps from this family}, of those that are provided."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries():
        for family, reason in entry["families"].items():
            if entry["provided"] and reason:
                groups.setdefault((family, reason), []).append(entry["name"])
    return groups


def print_table(console: Console | None = None) -> None:
    """Print the table, the reasons and what is not provided; 80 characters wide."""
    console = roomy(console or Console())
    shown = table()
    shown.add_column("Objective", no_wrap=True)
    for family in FAMILIES:
        shown.add_column(family.replace("_", "\n"), no_wrap=True, min_width=7)
    shown.add_column("Paper")
    for name, kind in _KINDS.items():
        shown.add_row(name, *marks(kind).values(), kind.paper)
    console.print(shown)
    print_paragraph(console, IN_ONE_ROW, "dim")
    refused = {f"{family}: {reason}": names for (family, reason), names in refusals().items()}
    missing = {f"{name}: {reason}": [paper] for name, (paper, reason) in NOT_PROVIDED.items()}
    _print_groups(console, "Cannot train", refused)
    _print_groups(console, "Not provided", missing)


def _print_groups(console: Console, title: str, groups: Mapping[str, list[str]]) -> None:
    """Print headings with what stands below each, indented."""
    console.print(Text(f"\n{title}", "bold"))
    for heading, names in groups.items():
        for text, indent in ((heading, 2), (", ".join(names), 6)):
            print_paragraph(console, text, indent=indent)


def marks(kind: Any) -> dict[str, str]:
    """Return {family: ✓, ✓* or –} of a class of OBJECTIVES."""
    one_row = {"decoder_only"} if issubclass(kind, TextToText) else set()
    carried = {family: "✓*" if family in one_row else "✓" for family in kind.families}
    return {family: carried.get(family, "–") for family in FAMILIES}

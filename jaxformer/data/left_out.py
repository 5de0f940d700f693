"""What is left out of the data or cut, counted while it is read, so that it can be said."""

from collections.abc import Iterable

from jaxformer.tables import counted

# {what: {"count": how many, "of": how many there were}}. `what` is plural and reads on from "3 of 60": "rows left out:
# no label", "examples cut to 128 tokens".
LeftOut = dict[str, dict[str, int]]


def count(left_out: LeftOut | None, what: str, number: int, of: int) -> None:
    """Count `number` of `of` things that were left out or cut. None counts nothing, and 0 is not said."""
    if left_out is not None and number:
        left_out[what] = {"count": number, "of": of}


def total(parts: Iterable[LeftOut]) -> LeftOut:
    """Return the sums of what was left out of several parts of the data."""
    sums: LeftOut = {}
    for part in parts:
        for what, counts in part.items():
            known = sums.setdefault(what, {"count": 0, "of": 0})
            sums[what] = {key: known[key] + counts[key] for key in known}
    return sums


def reasons(left_out: LeftOut) -> str:
    """Return in brackets what was left out, "" where nothing was: why a split may be empty."""
    return f" ({'; '.join(counted({'': left_out}))})" if left_out else ""

"""What tests of the row index share: objectives that are nothing but their rows, documents, and rows read plainly."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxformer.data.rows import Row, Rows, build_rows
from jaxformer.data.store import Store

SEPARATOR = 999


def objective(kind: str, row_length: int, separator: int | None = None, **settings: Any) -> Any:
    return SimpleNamespace(row_settings={"rows": kind, "row_length": row_length, "separator": separator} | settings)


def pairs(row_length: int, short: float = 0.1, dupe_factor: int = 1) -> Any:
    keys = {"short_sequence_probability": short, "dupe_factor": dupe_factor}
    return objective("segment_pairs", row_length, None, **keys)


def texts(source: int, target: int, pack: bool = True) -> Any:
    settings = {"rows": "pairs", "lengths": [source, target], "pack": pack}
    return SimpleNamespace(row_settings=settings)


def rows_of(store: Store, wanted: Any, seed: int = 0) -> Rows:
    return build_rows(store, wanted, seed, cache=False)


def plain(row: Row) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}


def read(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows without what only says which they are."""
    found = [plain(rows[number]) for number in range(len(rows))]
    assert [row.pop("number") for row in found] == list(range(len(rows)))
    assert {row.pop("seed") for row in found} <= {rows.seed}
    return found


def random_documents(seed: int, count: int = 12, sentences: int = 6, length: int = 9) -> list[list[list[int]]]:
    """Documents whose tokens count up from 1, so that a token tells its place: token t stands at t - 1."""
    rng, documents, token = random.Random(seed), [], 1
    for _ in range(count):
        document = []
        for _ in range(rng.randint(1, sentences)):
            size = rng.randint(1, length)
            document.append(list(range(token, token + size)))
            token += size
        documents.append(document)
    return documents


TWO = ([[1, 2], [3]], [[4, 5, 6, 7]])

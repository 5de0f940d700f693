"""Files of the cache that are hashed when they are written and checked when they are opened.

A **seal** is a JSON file beside them: the SHA-256 of each, some facts, and the SHA-256 of all that.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxformer.storage import content_digest, write_json

Note = Callable[[str], None]


class Damaged(Exception):
    """What was opened is not what was written."""


def seal(record: Path, names: Iterable[str], facts: dict[str, Any]) -> None:
    """Write the seal of the files of these names, which lie beside it."""
    content = {"files": {name: content_digest(record.parent / name) for name in sorted(names)}, "facts": facts}
    write_json(record, content | {"sha256": _digest(content)})


def unsealed(record: Path) -> dict[str, Any] | None:
    """Return the facts of a seal whose files are as they were written; None where there is no seal.

    A file is read once, as long as its size and times stay. Raises Damaged, naming the file, when one has changed.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        intact = digest == _digest(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise Damaged(f"{record} is damaged")
    for name, digest in content["files"].items():
        try:
            intact = content_digest(record.parent / name) == digest
        except OSError:
            intact = False
        if not intact:
            raise Damaged(f"{record.parent / name} is not as it was written")
    return dict(content["facts"])


def told(error: Damaged, what: str, note: Note | None) -> None:
    """Say that something damaged is made again."""
    if note is not None:
        note(f"{error}; {what} is made again")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

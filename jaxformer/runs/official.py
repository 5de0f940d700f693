"""Answers as the files that official scorers and servers read, written beside them once all are there."""

import json
from pathlib import Path

from jaxformer.errors import UserError, disk_errors
from jaxformer.objectives import Supervision
from jaxformer.tasks import SCORER_FILES


def check_official(task: Supervision, answers: Path | None, num_wrong: int) -> None:
    """Raise UserError where no official file can be written of a task's answers."""
    if answers is None:
        raise UserError("--format=official: the files stand beside the answers; name a file for these with --output")
    if task.label_kind not in SCORER_FILES:
        raise UserError(f"--format=official: there is no official file for the answers of {task.name}; leave it out")
    if num_wrong:
        raise UserError(f"--format=official: {num_wrong:,} rows are malformed, and a scorer wants all; mend them")


def write_official(task: Supervision, answers: Path) -> list[Path]:
    """Write the official files of answers, named as these are, and return where they are. Raises UserError for
    questions without an id."""
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n") if line]
    records = [{"id": line["id"]} if "id" in line else {} for line in lines]
    files = SCORER_FILES[task.label_kind](lines, records, task.labels)
    paths = []
    for name, content in files.items():
        path = answers.with_name(f"{answers.stem}.{name.removeprefix('predictions.')}")
        with disk_errors(path):
            path.write_text(content, encoding="utf-8")
        paths.append(path)
    return paths

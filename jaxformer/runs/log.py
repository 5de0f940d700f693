"""`metrics.jsonl`: what a run logs, and the same scalars for TensorBoard."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxformer.errors import disk_errors
from jaxformer.storage import finite, read_metrics


class MetricsLog:
    """`metrics.jsonl` and the same scalars for TensorBoard. On resume, lines after the restored step are cut.

    Of several processes the first alone `writes`.
    """

    def __init__(self, workdir: Path, resume_step: int, writes: bool = True) -> None:
        self.path, self.writes = workdir / "metrics.jsonl", writes
        self._evaluated: set[int] = set()
        if not writes:
            return
        with disk_errors(self.path):
            self._cut(resume_step)
            for entry in read_metrics(workdir):
                self._note(entry["step"], entry)
            self._file: TextIO = self.path.open("a")
            self._board = _board(workdir / "tensorboard", resume_step + 1)

    def _cut(self, step: int) -> None:
        """Keep the whole lines of steps up to `step`, so that no step stands twice."""
        kept = [json.dumps(finite(entry)) + "\n" for entry in read_metrics(self.path.parent) if entry["step"] <= step]
        temporary = self.path.with_name(f".metrics.{os.getpid()}")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)

    def last(self, name: str) -> float:
        """Return the newest logged value of `name`, 0 where there is none."""
        values = [entry[name] for entry in read_metrics(self.path.parent) if entry.get(name) is not None]
        return float(values[-1]) if values else 0.0

    def newest(self) -> dict[str, float]:
        """Return the numbers of the last evaluation and the last "train/loss"; what was not finite is left out."""
        entries = read_metrics(self.path.parent)
        losses = [{"train/loss": entry["train/loss"]} for entry in entries if "train/loss" in entry]
        judged = [{key: entry[key] for key in entry if key.startswith("eval/")} for entry in entries]
        found = {**(losses or [{}])[-1], **([entry for entry in judged if entry] or [{}])[-1]}
        return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}

    def history(self, name: str) -> list[tuple[int, float | None]]:
        """Return (step, value) of every evaluation that gave `name`, in order; None where it was not finite."""
        return [(entry["step"], entry[name]) for entry in read_metrics(self.path.parent) if name in entry]

    def evaluated(self, step: int) -> bool:
        """Say whether an evaluation of this step is logged; the process that writes knows."""
        return step in self._evaluated

    def _note(self, step: int, values: Iterable[str]) -> None:
        if any(name.startswith("eval/") for name in values):
            self._evaluated.add(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step; one that is not finite is null, and TensorBoard does not get it."""
        if not self.writes:
            return
        with disk_errors(self.path):
            self._file.write(json.dumps(finite({"step": step, **values})) + "\n")
            self._file.flush()
            self._note(step, values)
            for name, value in values.items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if not self.writes:
            return
        with disk_errors(self.path):
            self._file.close()
            self._board.close()


def _board(folder: Path, first_step: int) -> Any:
    """Return what writes scalars for TensorBoard, which forgets older ones from `first_step` on.

    Where PyTorch is installed, tensorboardX imports it for arrays of its kind, which takes seconds. Here it has none,
    and does without PyTorch as where it is absent.
    """
    modules: dict[str, Any] = sys.modules
    absent = "torch" not in modules
    if absent:
        modules["torch"] = None  # importing it raises ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del modules["torch"]
    return SummaryWriter(str(folder), purge_step=first_step)

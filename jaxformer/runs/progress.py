"""What a run shows while it goes: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from jaxformer.tables import brief, roomy

LINE_EVERY = 5.0  # seconds between plain progress lines of one activity


class Display:
    """Shows activities (tokenising, training). `note` prints a line above the bar; output goes to stderr."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = roomy(Console(stderr=True, highlight=False, emoji=False, quiet=quiet))
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when an activity was first heard of, and how far it was

    def __enter__(self) -> "Display":
        if self.console.is_interactive:  # a terminal that can draw
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_interactive:
            self.bar.stop()

    def note(self, text: Any) -> None:
        """Print a line, or a rich table."""
        self.console.print(text, markup=False, soft_wrap=True) if isinstance(text, str) else self.console.print(text)

    def progress(self, activity: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """Show that `done` of `total` units of an activity are done (total 0: unknown), with some values beside it."""
        words = "  ".join(f"{name} {brief(value)}" for name, value in (values or {}).items())
        if self.console.is_interactive:
            if activity not in self._tasks:
                self._tasks[activity] = self.bar.add_task(activity, total=total or None, completed=done, values=words)
            self.bar.update(self._tasks[activity], completed=done, total=total or None, values=words)
            if total and done >= total:
                self.bar.remove_task(self._tasks.pop(activity))
            return
        now = time.monotonic()
        if now - self._last.get(activity, -LINE_EVERY) >= LINE_EVERY or (total and done >= total):
            self._last[activity] = now
            count = f" {done}/{total}" if total else f" {done}" if done else ""
            self.note(f"{activity}{count}  {words}".rstrip() + self._left(activity, now, done, total))

    def _left(self, activity: str, now: float, done: int, total: int) -> str:
        """Return how long the rest of an activity will take at the rate so far, "" where nothing tells."""
        began, first = self._first.setdefault(activity, (now, done))
        if not first < done < total:
            return ""
        seconds = (now - began) / (done - first) * (total - done)
        size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= size)
        return f"  about {seconds / (size or 1):.0f} {unit} left"

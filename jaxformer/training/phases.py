"""Phases of a run: a batch size that grows (GPT-3, appendix B), rows that get longer (BERT, appendix A.2).

`training.phases` is a list of dicts {"steps": n, key: value, …}, each for the n steps after those before it; behind the
last, the config's own values hold. Keys are `batch_size`, `accumulation_steps` and those of the objective or task. So
the batch of every step still is a pure function of the config and the step, and a run resumes in any phase.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.checks import check_keys, check_kind, check_range
from jaxformer.errors import UserError
from jaxformer.objectives import Supervision
from jaxformer.training.step import losses_of

OWN = ("steps", "batch_size", "accumulation_steps")


class Phase(NamedTuple):
    """Steps `first` + 1 to `last` (None: to the end) draw batches of one kind, from example `first_example` on."""

    first: int
    last: int | None
    first_example: int
    batch_size: int
    accumulation_steps: int
    changes: Mapping[str, Any]  # of the objective's or task's own keys

    def of(self, supervision: Any) -> Any:
        """Return the objective or task as it is in this phase, to be bound: binding may read the changed keys."""
        return dataclasses.replace(supervision, **self.changes) if self.changes else supervision

    def example(self, step: int) -> int:
        """Return the number of the first example after `step` steps of the run."""
        return self.first_example + (step - self.first) * self.batch_size


def read_phases(
    phases: Sequence[Mapping[str, Any]], batch_size: int, accumulation_steps: int, supervision: Supervision, name: str
) -> tuple[Phase, ...]:
    """Return the phases of a run, the one of the config's own values last.

    `supervision` is its objective or task, which errors call `name`. Raises UserError, naming the phase, for a key that
    there is not and for values that cannot be.
    """
    read, step, example = [], 0, 0
    for number, phase in enumerate(phases):
        where = f"training.phases[{number}]"
        own = {key: phase[key] for key in OWN if key in phase}
        changes = {key: value for key, value in phase.items() if key not in OWN}
        check_keys(where, changes, type(supervision), name, OWN)
        for key, value in own.items():
            check_kind(f"{where}.{key}", value, int)
            check_range(f"{where}.{key}", value, at_least=1)
        if "steps" not in own:
            raise UserError(f"{where}.steps: missing; say for how many steps the phase lasts")
        size, pieces = own.get("batch_size", batch_size), own.get("accumulation_steps", accumulation_steps)
        if size % pieces:
            raise UserError(f"{where}.batch_size: {size} is no multiple of accumulation_steps {pieces}")
        found = Phase(step, step + own["steps"], example, size, pieces, changes)
        try:
            changed = found.of(supervision)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if losses_of(changed) != losses_of(supervision):
            keys = ", ".join(changes)
            raise UserError(f"{where}: a run has one loss, and {keys} would change it; set it for all steps")
        read.append(found)
        step, example = step + own["steps"], example + own["steps"] * size
    return (*read, Phase(step, None, example, batch_size, accumulation_steps, {}))

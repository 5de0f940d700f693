"""Many runs as one question.

What lives here: sweeps, that is what is searched (`space`), a study's folder (`study`), what comes next (`searching`),
who trains it (`working`), in which processes (`workers`), and all of it from beginning to end (`sweeping`); what a
checkpoint is worth, two sweeps for each of two arms (`transferring`), and its demonstration (`demo`); a paper's table
of ablations, as data (`ablations`), what it will take (`reproduction`), trained (`reproducing`, `measuring`), and a
result tried again (`checking`).
What may come in: whatever starts runs and compares them.
What must not: how one run trains (runs), and how its numbers are drawn (report)."""

from jaxformer.studies.ablations import read_table
from jaxformer.studies.checking import check_result
from jaxformer.studies.demo import run_demo
from jaxformer.studies.reproducing import reproduce
from jaxformer.studies.reproduction import Reproduction, commands, listed, planned, told, work_in
from jaxformer.studies.searching import check_search
from jaxformer.studies.space import FLAG, read_words
from jaxformer.studies.study import (
    Experiment,
    Settings,
    Study,
    open_study,
    planned_study,
    read_study,
)
from jaxformer.studies.sweeping import absolute_spec, best_command, default_study, run_study, sweep
from jaxformer.studies.transferring import Transfer, transfer
from jaxformer.studies.workers import joined, leave_devices, worker

__all__ = [
    "Experiment",
    "Reproduction",
    "FLAG",
    "Settings",
    "Study",
    "Transfer",
    "absolute_spec",
    "best_command",
    "default_study",
    "check_result",
    "check_search",
    "commands",
    "joined",
    "leave_devices",
    "listed",
    "open_study",
    "planned",
    "planned_study",
    "read_study",
    "read_table",
    "read_words",
    "reproduce",
    "run_demo",
    "run_study",
    "sweep",
    "told",
    "transfer",
    "work_in",
    "worker",
]

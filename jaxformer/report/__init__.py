"""Run directories in; tables, pictures and pages out.

What lives here: a run as its files tell it (`read`), the table of runs (`summary`), what was found of each
(`evaluations`), figures (`plots`), the page (`page`), what a study of transfer shows (`transfer`), and a
sweep: its folder (`study`), its table (`sweep`) and its figures (`sweep_plots`).
What may come in: further tables and figures of finished or running runs and studies.
What must not: JAX, and anything that makes runs: a report is made where nothing can train."""

from jaxformer.report.page import write_report, write_sweep_report, write_transfer_report
from jaxformer.report.plots import COLOURS, MARKERS, SERIES, STYLE
from jaxformer.report.read import find_runs, read_run
from jaxformer.report.study import (
    COSTS,
    DONE,
    FAILED,
    KIND,
    OVER,
    PRUNED,
    RUNNING,
    STOPPED,
    STUDY,
    TRIAL,
    TRIALS,
    WAITING,
    Sweep,
    SweepPoint,
    SweepTrial,
    costs_of,
    is_sweep,
    load_study,
    read_study_record,
    read_sweep,
    read_trial_record,
    seconds_left,
)
from jaxformer.report.summary import print_summary, summary_rows
from jaxformer.report.sweep import print_seeds, print_sweep, progress_line, sweep_table
from jaxformer.report.transfer import equal_accuracy, payback, print_transfer

__all__ = [
    "COLOURS",
    "COSTS",
    "DONE",
    "FAILED",
    "KIND",
    "MARKERS",
    "OVER",
    "PRUNED",
    "RUNNING",
    "SERIES",
    "STOPPED",
    "STUDY",
    "STYLE",
    "Sweep",
    "SweepPoint",
    "SweepTrial",
    "TRIAL",
    "TRIALS",
    "WAITING",
    "costs_of",
    "equal_accuracy",
    "find_runs",
    "is_sweep",
    "load_study",
    "payback",
    "print_seeds",
    "print_summary",
    "print_sweep",
    "progress_line",
    "print_transfer",
    "read_run",
    "read_study_record",
    "read_sweep",
    "read_trial_record",
    "seconds_left",
    "summary_rows",
    "sweep_table",
    "write_report",
    "write_sweep_report",
    "write_transfer_report",
]

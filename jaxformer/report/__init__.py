"""Run directories in; tables, pictures and pages out.

What lives here: a run as its files tell it (`read`), the table of runs (`summary`), what was found of each
(`evaluations`), figures (`plots`), the page (`page`); a sweep: its folder (`study`), its table (`sweep`) and its
figures (`sweep_plots`); and what pretraining brought (`transfer`), in words and tables (`transfer_words`) and in
figures (`transfer_plots`); a reproduction of a paper's table (`reproduction`), what it shows in numbers
(`reproduction_statistics`), in sentences (`reproduction_words`), tables (`reproduction_tables`) and pictures
(`reproduction_plots`), and as a page of docs/results (`reproduction_markdown`).
What may come in: further tables and figures of finished or running runs and studies.
What must not: JAX, and anything that makes runs: a report is made where nothing can train."""

from jaxformer.report.page import write_report, write_reproduction_report, write_sweep_report, write_transfer_report
from jaxformer.report.plots import COLOURS, MARKERS, SERIES, STYLE
from jaxformer.report.read import find_runs, read_run
from jaxformer.report.reproduction import SHARED, STAGES, read_reproduction, read_result
from jaxformer.report.reproduction_markdown import write_results
from jaxformer.report.reproduction_tables import print_reproduction
from jaxformer.report.study import (
    COSTS,
    DONE,
    FAILED,
    KIND,
    OVER,
    PRUNED,
    REPRODUCTION,
    RUNNING,
    STOPPED,
    STUDY,
    TRANSFER,
    TRIAL,
    TRIALS,
    WAITING,
    Sweep,
    SweepPoint,
    SweepTrial,
    costs_of,
    is_reproduction,
    is_sweep,
    is_transfer,
    load_study,
    read_study_record,
    read_sweep,
    read_trial_record,
    seconds_left,
)
from jaxformer.report.summary import print_summary, summary_rows
from jaxformer.report.sweep import print_seeds, print_sweep, progress_line, sweep_table
from jaxformer.report.transfer import ARMS, LABELS, MOST, RATE, RATES, STEPS, equal_metric, payback, read_transfer
from jaxformer.report.transfer_words import print_transfer

__all__ = [
    "ARMS",
    "COLOURS",
    "COSTS",
    "DONE",
    "FAILED",
    "KIND",
    "LABELS",
    "MARKERS",
    "MOST",
    "OVER",
    "PRUNED",
    "RATE",
    "RATES",
    "REPRODUCTION",
    "RUNNING",
    "SERIES",
    "SHARED",
    "STAGES",
    "STEPS",
    "STOPPED",
    "STUDY",
    "STYLE",
    "Sweep",
    "SweepPoint",
    "SweepTrial",
    "TRANSFER",
    "TRIAL",
    "TRIALS",
    "WAITING",
    "costs_of",
    "equal_metric",
    "find_runs",
    "is_reproduction",
    "is_sweep",
    "is_transfer",
    "load_study",
    "payback",
    "print_reproduction",
    "print_seeds",
    "print_summary",
    "print_sweep",
    "print_transfer",
    "progress_line",
    "read_reproduction",
    "read_result",
    "read_run",
    "read_study_record",
    "read_sweep",
    "read_transfer",
    "read_trial_record",
    "seconds_left",
    "summary_rows",
    "sweep_table",
    "write_report",
    "write_reproduction_report",
    "write_results",
    "write_sweep_report",
    "write_transfer_report",
]

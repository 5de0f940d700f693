"""Runs in, tables and pictures out: `read_run`, the terminal table, and one page that can be sent to a colleague."""

from jaxformer.report.page import write_report, write_transfer_report
from jaxformer.report.read import Run, find_runs, read_run
from jaxformer.report.summary import print_summary, summary_rows
from jaxformer.report.transfer import equal_accuracy, payback, print_transfer

__all__ = [
    "Run",
    "equal_accuracy",
    "find_runs",
    "payback",
    "print_summary",
    "print_transfer",
    "read_run",
    "summary_rows",
    "write_report",
    "write_transfer_report",
]

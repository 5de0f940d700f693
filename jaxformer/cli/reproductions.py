"""The verb `reproduce`: its flags, and what it does."""

import argparse
import json
from pathlib import Path

from jaxformer.storage import finite, local_path


def report_reproduction(args: argparse.Namespace, folder: Path) -> int:
    """Write the page on a reproduction of a paper's table, by default into its own folder."""
    from jaxformer import report

    found = report.read_reproduction(folder)
    if args.json:
        print(json.dumps(finite(found)))
        return 0
    page = report.write_reproduction_report(found, local_path(args.output or folder / "report", "--output"))
    report.print_reproduction(found)
    print(f"report: {page}")
    return 0

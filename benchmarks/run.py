"""Run comparisons against the best that others have, and print one table.

    python benchmarks/run.py                    # all, what `make bench` runs; needs the extra `reference`
    python benchmarks/run.py c2 c5 --rounds 1   # some of them

Each comparison says in its own file what it compares. See benchmarks/README.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import table


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        comparison, case, side, folder, number = sys.argv[2:]
        harness.child(comparison, case, side, Path(folder), int(number))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="c1 to c10; default: all")
    parser.add_argument("--rounds", type=int, default=0, help="processes of each side, in turn (default: as it says)")
    parser.add_argument("--anyway", action="store_true", help="measure also where the machine is not idle")
    parser.add_argument("--output", type=Path, help="folder for the JSON files and cpu.md; default: none are written")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of JSON files that are there")
    parser.add_argument("--readme", type=Path, help="put the table between the markers of this file")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in harness.COMPARISONS]:
        parser.error(f"no comparison {unknown[0]}; there are {', '.join(harness.COMPARISONS)}")
    if args.table:
        records = [json.loads(path.read_text()) for path in sorted(args.table.glob("c*.json"), key=_number)]
    else:
        records = measured(args.names or harness.COMPARISONS, args.rounds, args.anyway, args.output)
    page = table.page(records)
    if args.output or args.table:
        ((args.output or args.table) / "cpu.md").write_text(page, encoding="utf-8")
    if args.readme:
        table.put(args.readme, records)
    print(page)
    return int(any("refused" in record for record in records))


def _number(path: Path) -> tuple[int, str]:
    """Sort c10 behind c9, and c6-16 behind c6-8."""
    comparison, _, case = path.stem[1:].partition("-")
    return int(comparison), case.zfill(9)


def measured(names: Any, rounds: int, anyway: bool, output: Path | None) -> list[dict[str, Any]]:
    """Run comparisons one after the other and return a record of each case; one that fails loses no other."""
    about, records = harness.about(), []
    with tempfile.TemporaryDirectory() as folder:
        peaks = peaks_of_the_machine(Path(folder))
        for comparison in names:
            for case in harness.cases(comparison):
                began, where = time.monotonic(), Path(folder) / comparison
                where.mkdir(exist_ok=True)
                record = {"name": case.name, "what": case.what} | about | {"peaks": peaks, "idle": True}
                try:
                    runs = harness.compare(comparison, case, where, rounds, anyway)
                    record |= {"rows": harness.rows(case, runs, peaks), "parity": harness.parity(case, runs)}
                    record["idle"] = all(run["foreign_share"] <= harness.DURING for run in harness.finished(runs))
                    record["runs"] = [{key: value for key, value in run.items() if key != "checked"} for run in runs]
                except Exception as error:  # whatever one case meets
                    record |= {"refused": str(error) or type(error).__name__, "rows": [], "runs": []}
                record["seconds"] = round(time.monotonic() - began)
                records.append(record)
                print("\n".join(table.lines(record)), f"({record['seconds']} s)", file=sys.stderr, flush=True)
                if output:
                    write(output / f"{case.name}.json", record)
    return records


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, a line for each of its entries and for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    runs = ",\n  ".join(json.dumps(run) for run in short.pop("runs"))
    lines = [f'"{key}": {json.dumps(value)}' for key, value in short.items()]
    path.write_text("{\n " + ",\n ".join([*lines, f'"runs": [\n  {runs}\n ]']) + "\n}\n", encoding="utf-8")


def peaks_of_the_machine(folder: Path) -> dict[str, float]:
    """Return how fast this machine multiplies and reads, by whichever of the two libraries does it better."""
    found: dict[str, float] = {}
    for side in ("ours", "theirs"):
        try:
            run = harness.in_process("peaks", "peaks", side, folder, 0)
        except harness.Refused as why:
            print(why, file=sys.stderr)
            continue
        found |= {name: max(found.get(name, 0.0), value) for name, value in run["figures"].items()}
    return found


if __name__ == "__main__":
    sys.exit(main())

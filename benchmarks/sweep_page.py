"""docs/results/NAME.json and .png from a study's folder, and the page NAME.md from them.

python benchmarks/sweep_page.py bert-small --study=studies/bert-small    # after the sweep
python benchmarks/sweep_page.py bert-small                               # the page, from the JSON as it is
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jaxformer import report
from jaxformer.report.sweep import cost_line, headings_and_rows
from jaxformer.report.sweep_plots import sweep_plots

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PICTURE = "sweep-curves.png"


def recorded(study: Path, notes: list[str]) -> dict[str, Any]:
    """Return what a study found, as its page needs it; `notes` are what it means, in words."""
    found = report.read_sweep(study)
    headings, rows = headings_and_rows(found)
    first = json.loads((found.trials[0].path / "config.json").read_text(encoding="utf-8"))
    return {
        "date": found.record["created"][:10],
        "command": found.record["command"],
        "commit": found.record["git_revision"],
        "packages": found.record["packages"],
        "device": first["device"],
        "metric": found.metrics[0],
        "best": dict(found.best.values) if found.best else {},
        "costs": found.costs() | {"wall_seconds": found.wall_seconds},
        "cost": cost_line(found),
        "table": [headings, *rows],
        "rows": [{name: value for name, value in row.items() if name != "path"} for row in found.rows()],
        "notes": notes,
    }


def page(name: str, record: dict[str, Any]) -> str:
    """Return the page of a study."""
    headings, *rows = record["table"]
    lines = [f"| {' | '.join(headings)} |", "|" + " ---: |" * len(headings)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    device, packages = record["device"], record["packages"]
    where = f"{device['count']} {device['kind']} device{'s' * (device['count'] > 1)}, jax {packages['jax']}"
    notes = "".join(f"{note}\n\n" for note in record["notes"])
    return f"""# A sweep: {name}

{record["date"]}, {where}, commit {str(record["commit"])[:7]}:

    {record["command"]}

{notes}![Learning curves]({name}.png)

""" + "\n".join([*lines, "", "In parentheses: what pruned runs had reached.", "", record["cost"], ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the files in docs/results")
    parser.add_argument("--study", type=Path, help="the study's folder; default: only the page is written")
    args = parser.parse_args()
    path = RESULTS / f"{args.name}.json"
    if args.study:
        notes = json.loads(path.read_text(encoding="utf-8"))["notes"] if path.exists() else []
        path.write_text(json.dumps(recorded(args.study, notes), indent=1) + "\n", encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            sweep_plots(report.read_sweep(args.study), Path(folder))
            shutil.copyfile(Path(folder) / PICTURE, path.with_suffix(".png"))
    record = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(page(args.name, record), encoding="utf-8")


if __name__ == "__main__":
    main()

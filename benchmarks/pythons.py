"""Training steps under two Pythons in turn, ours alone, from the same weights on the same batches.

    python benchmarks/pythons.py .venv-3.11/bin/python c1 c2 c3    # another environment with this package

Prints, of each comparison, the medians of both, the other's time beside this one's, and the seconds from the start of
the process to the first step with nothing compiled. This Python needs the extra `reference`, for the weights.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import harness

CASES = ("c1", "c2", "c3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the other interpreter")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each, in turn (default: 2)")
    args = parser.parse_args()
    print("| | here, ms | there, ms | there / here | first step, nothing compiled, s | there |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in args.names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            harness.in_process(name, name, "make", path, 0)
            steps: dict[str, list[float]] = {sys.executable: [], args.python: []}
            first: dict[str, float] = {}
            for number in range(args.rounds):
                for python, seconds in steps.items():
                    run = harness.undisturbed(name, name, "ours", path, number, False, python)
                    seconds += run["figures"]["step"]
                    first.setdefault(python, run["first_seconds"])
        ours, theirs = (1e3 * statistics.median(values) for values in steps.values())
        starts = " | ".join(f"{value:.1f}" for value in first.values())
        print(f"| {name.upper()} | {ours:,.4g} | {theirs:,.4g} | {theirs / ours:.2f} | {starts} |", flush=True)


if __name__ == "__main__":
    main()

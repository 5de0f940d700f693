"""Deliberate faults, one at least in every room, each of which must turn the tests that it names red.

    python tests/faults.py [NAME ...]

works on a copy of the repository, where all named tests pass: for each fault (or those in the files NAME, as in
`checks.py`) it replaces a piece of text, runs the tests and puts the text back. Ends with 1 if a fault stays green, or
if its tests do not run at all. tests/test_faults.py sees every day that each text is there once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")


class Fault(NamedTuple):
    file: str  # below jaxformer/, or from the root
    text: str  # occurs once in the file
    instead: str
    tests: str  # files or node ids below tests/, separated by spaces


FAULTS = (
    Fault("cli/main.py", "words[:cut], words[cut + 1 :]", "words[:cut], words[cut:]", "test_launch.py"),
    Fault(
        "studies/transferring.py", '(*shared, "init_from=", *model)', '(*shared, f"init_from={run}", *model)',
        "test_transfer.py::test_arms_differ_in_where_they_start_and_in_their_rates",
    ),
    Fault(
        "interop/tables.py", '("q_lin", "k_lin", "v_lin", "out_lin")', '("k_lin", "q_lin", "v_lin", "out_lin")',
        "test_reference.py::test_logits_and_hidden_states[distilbert]",
    ),
    Fault("planning/plan.py", 'plan["utilisation"]) / 3600', 'plan["utilisation"]) / 60', "test_plan.py"),
    Fault("explain/catalog.py", "predicts_tokens=not is_body", "predicts_tokens=True", "test_catalog.py"),
    Fault("report/transfer.py", "saving = scratch - pretrained", "saving = scratch + pretrained", "test_report.py"),
    Fault(
        "runs/log.py", 'if entry["step"] <= step]', 'if entry["step"] < step]',
        "test_runs.py::test_a_stop_at_a_step_that_was_to_be_judged_leaves_the_judgement_for_later",
    ),
    Fault(
        "config.py", "longest > model.max_length", "longest >= model.max_length",
        "test_config.py",
    ),
    Fault("evaluation/held_out.py", 'geometric = key == "perplexity"', "geometric = False", "test_evaluation.py"),
    Fault(
        "generation/decoding.py", "(positions_B + state.num_written)", "(positions_B + state.num_written + 1)",
        "test_generation.py::test_the_cache_gives_what_recomputing_the_whole_prefix_gives",
    ),
    Fault(
        "training/losses.py", "share = label_smoothing / (vocab_size - 1)", "share = label_smoothing / vocab_size",
        "test_step.py::test_cross_entropy_by_hand",
    ),
    Fault("data/rows.py", "counts = -(-lengths[kept] // length)", "counts = lengths[kept] // length", "test_rows.py"),
    Fault(
        "tasks/label_metrics.py", 'labels=range(num_classes), average="macro"',
        'labels=range(num_classes), average="micro"', "test_metrics.py",
    ),
    Fault(
        "objectives/noise.py", "spans = max(1, round(tokens / mean_span_length))",
        "spans = max(1, round(tokens / mean_span_length) - 1)", "test_objective_statistics.py test_corruption.py",
    ),
    Fault("objectives/masked_lm.py", ">= boundary + 2", ">= boundary + 1", "test_masked_lm.py"),
    Fault(
        "models/positions.py", "exact = num_buckets // 2", "exact = num_buckets // 4",
        "test_reference.py::test_logits_and_hidden_states[t5]",
    ),
    Fault(
        "checkpoint/digest.py", "saved - last >= hours * 3600", "saved - last >= hours * 60",
        "test_checkpoint.py::test_one_checkpoint_is_kept_for_every_so_many_hours",
    ),
    Fault("launch/policy.py", "backoff * 2.0**restart", "backoff * 2.0 * restart", "test_launch_jobs.py"),
    Fault("tokenizers/training.py", "if config.vocab_size <= needed:", "if False:", "test_tokenizers.py"),
    Fault("footprint/emissions.py", "max(numbers, default=0) + 1", "max(numbers, default=1)", "test_footprint.py"),
    Fault("devices/sharding.py", "units % size == 0", "length % size == 0", "test_sharding.py"),
    Fault(
        "storage.py", "with contextlib.suppress(json.JSONDecodeError):", "with contextlib.nullcontext():",
        "test_storage.py::test_a_line_of_the_log_that_a_crash_tore_is_left_out",
    ),
    Fault("trees.py", "-layers <= layer < layers", "0 <= layer < layers", "test_trees.py"),
    Fault("tables.py", "digits - 1 - math.floor", "digits - math.floor", "test_tables.py"),
    Fault("checks.py", '"at least", at_least, operator.ge', '"at least", at_least, operator.gt', "test_checks.py"),
    Fault("errors.py", "cutoff=0.5", "cutoff=0.99", "test_config.py"),
)  # fmt: skip


def path_of(fault: Fault) -> Path:
    """Where the fault's file is, from the root: `launch/` lies beside the package."""
    return Path(fault.file) if fault.file.startswith(("launch/", "experiments/")) else Path("jaxformer", fault.file)


def copy(folder: Path) -> None:
    """Copy the repository so that an import there finds the copy: launch/ and experiments/ through links."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    for name in ("launch", "experiments"):
        (folder / "jaxformer" / name).symlink_to(folder / name)


def run(folder: Path, tests: str) -> tuple[int, str]:
    """Run tests in a copy until one fails; return pytest's exit code and its last line."""
    paths = [f"tests/{test}" for test in tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-m", "not slow", *paths]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]


def main(names: list[str]) -> int:
    green = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        copy(folder)
        faults = [fault for fault in FAULTS if not names or fault.file in names]
        code, said = run(folder, " ".join(fault.tests for fault in faults))
        print(f"without a fault: {said}", flush=True)
        if code:
            return 1
        for fault in faults:
            began, path = time.monotonic(), folder / path_of(fault)
            whole = path.read_text(encoding="utf-8")
            if whole.count(fault.text) != 1:
                sys.exit(f"{fault.file}: {fault.text!r} is there {whole.count(fault.text)} times")
            path.write_text(whole.replace(fault.text, fault.instead), encoding="utf-8")
            code, said = run(folder, fault.tests)
            path.write_text(whole, encoding="utf-8")
            # 1: a test failed. Anything else but 0: none was run, which shows nothing.
            verdict = {0: "GREEN", 1: "red"}.get(code, "NOT RUN")
            green += [fault.file] if code != 1 else []
            print(f"{verdict:7} {fault.file}: {fault.instead!r} ({time.monotonic() - began:.0f} s; {said})", flush=True)
    print(f"not seen: {', '.join(green)}" if green else "every fault is seen")
    return 1 if green else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""From the command to the first line of metrics.jsonl: seconds of each stage, and the programs that were compiled.

    python benchmarks/startup.py --config=bert:smoke             # nothing cached
    python benchmarks/startup.py --warm=FOLDER --config=gpt:small  # what FOLDER has cached; run it twice

Further words are those of `jaxformer train`. CPU seconds compare on a busy machine, wall seconds only on a quiet one.
"""

import importlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGUN = time.time()
STAGES = (
    ("jaxformer.config", "load"), ("jaxformer.runs.data", "choose_tokenizer"),
    ("jaxformer.runs.data", "training_members"), ("jaxformer.runs.data", "held_out_members"),
    ("jaxformer.runs.loop", "build_learner"), ("jaxformer.runs.loop", "start_state"),
)  # fmt: skip
marks: list[tuple[str, float, float]] = []
programs: list[tuple[str, float]] = []


def mark(stage: str) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    marks.append((stage, time.time() - BEGUN, used.ru_utime + used.ru_stime))


def marked(place: Any, name: str, then: Callable[[], None] = lambda: None) -> None:
    """Mark when a function of a module or class returns, and do something `then`."""
    function = getattr(place, name)

    def called(*args: Any, **given: Any) -> Any:
        mark(f"  before {name}")
        result = function(*args, **given)
        mark(name)
        then()
        return result

    setattr(place, name, called)


def show() -> None:
    """Print the stages and end, as soon as the first metrics are written."""
    before = (0.0, 0.0)
    for stage, wall, cpu in marks:
        if wall - before[0] > 0.05:
            print(f"{stage:28} {wall:6.2f} s (+{wall - before[0]:5.2f})   CPU {cpu:6.2f} s (+{cpu - before[1]:5.2f})")
        before = wall, cpu
    for name, seconds in programs:
        print(f"compiled or read: {name:24} {seconds:6.3f} s")
    sys.stdout.flush()
    os._exit(0)


def main(words: list[str]) -> int:
    folder = tempfile.mkdtemp(prefix="startup-")
    cache = next((word.partition("=")[2] for word in words if word.startswith("--warm=")), f"{folder}/cache")
    os.environ["JAXFORMER_CACHE"] = str(Path(cache).absolute())
    command = importlib.import_module("jaxformer.cli.main")
    jax = importlib.import_module("jax")
    mark("import jax")
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **facts: (
            programs.append((str(facts.get("fun_name")), seconds)) if "backend_compile" in event else None
        )
    )
    importlib.import_module("jaxformer.runs")
    mark("import jaxformer.runs")
    for module, name in STAGES:
        marked(importlib.import_module(module), name)
    marked(importlib.import_module("jaxformer.runs.learner").Learner, "step")
    marked(importlib.import_module("jaxformer.runs.log").MetricsLog, "write", show)
    words = [word for word in words if not word.startswith("--warm=")]
    return int(command.main(["train", "--quiet", f"--workdir={folder}/run", *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

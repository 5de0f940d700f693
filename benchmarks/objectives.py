"""How fast examples are made: tokens of the corpus per second of CPU, of each objective by itself and of the pipeline.

    python benchmarks/objectives.py [NAME ...] [--rounds 5] [--json]

See benchmarks/README.md.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import numpy as np

from jaxformer.data.batches import Member, train_batches
from jaxformer.data.rows import build_rows
from jaxformer.data.store import Store
from jaxformer.models.config import FAMILIES
from jaxformer.objectives import OBJECTIVES
from jaxformer.objectives.mixture import Padded
from jaxformer.tokenizers import Vocabulary

LENGTH = 512
BATCH = 32
TOKENS = 2_000_000
SIZE, SENTINELS = 32_128, 100
SPECIAL = {"pad": 0, "end": 1, "unknown": 2, "start": 3, "mask": 4, "classify": 5, "separator": 6}
# Members of the mixture: for models that write, and for those that do not.
DENOISERS: tuple[dict[str, Any], ...] = (
    {"name": "span_corruption"},
    {"name": "span_corruption", "mean_span_length": 8.0},
    {"name": "prefix_lm"},
)
MASKS: tuple[dict[str, Any], ...] = ({"name": "masked_lm"}, {"name": "masked_lm", "masking_rate": 0.4})
# Rows and batches of one round: some tenths of a second.
ROWS, BATCHES = 1000, 30


def vocabulary() -> Vocabulary:
    sentinels = np.arange(SIZE - 1, SIZE - 1 - SENTINELS, -1, dtype=np.int32)
    is_special = np.zeros(SIZE, bool)
    is_special[[*SPECIAL.values(), *sentinels]] = True
    starts = np.random.default_rng(1).random(SIZE) < 0.7  # seven of ten tokens begin a word
    return Vocabulary(SIZE, SPECIAL, sentinels, is_special, starts | is_special)


def store(folder: Path, mean_document: int, mean_sentence: int) -> Store:
    """Write and map a store of random tokens; documents come in pairs, for objectives that read those."""
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / mean_document, 2 * TOKENS // mean_document).cumsum()
    ends = lengths[lengths < TOKENS]
    offsets = np.concatenate([[0], ends[: len(ends) // 2 * 2]])
    sentences = rng.geometric(1 / mean_sentence, 2 * TOKENS // mean_sentence).cumsum()
    sentences = np.union1d(sentences[sentences < offsets[-1]], offsets[:-1])
    # Frequent ids are small, as in a vocabulary that was trained.
    ids = len(SPECIAL) + (SIZE - len(SPECIAL) - SENTINELS) ** rng.random(offsets[-1])
    folder.mkdir()
    ids.astype(np.uint16).tofile(folder / "tokens.bin")
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    return Store(folder, tokens, offsets, sentences, folder.name)


def objective_of(name: str, family: str) -> Any:
    """Return an objective whose stacks read 512 tokens, for a model of this family."""
    settings: dict[str, Any] = {"sequence_length": LENGTH}
    if name == "parallel_text":
        settings = {"source_length": LENGTH // 2, "target_length": LENGTH // 2}
    if name == "mixture":
        members = MASKS if family == "encoder_only" else DENOISERS
        settings = {"members": tuple(member | {"sequence_length": LENGTH} for member in members)}
    visibility = {"decoder_only": "prefix", "encoder_decoder": "causal"}.get(family, "full")
    if name == "causal_lm":
        visibility = "causal"
    return (
        OBJECTIVES[name](**settings)
        .for_model(SimpleNamespace(family=family, visibility=visibility, token_types=2))
        .bind(vocabulary())
    )


def rngs(seed: int) -> Iterator[np.random.Generator]:
    """Yield the rng of each example as Grain makes it: one generator whose counter is set anew."""
    rng = np.random.Generator(np.random.Philox(seed))
    number = 0
    while True:
        state: Any = rng.bit_generator.state
        state["state"]["counter"] = np.array([0, 0, seed, number], np.uint64)
        state |= {"buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        rng.bit_generator.state = state
        yield rng
        number += 1


@dataclasses.dataclass
class Subject:
    """An objective for a family, what runs it, and the rates that were measured, in tokens of the corpus per second."""

    name: str
    family: str
    examples: list[tuple[Any, Any]]  # (transform, row)
    batches: Any
    alone: list[float] = dataclasses.field(default_factory=list)
    pipeline: list[float] = dataclasses.field(default_factory=list)

    @property
    def row_tokens(self) -> float:
        return sum(len(row["tokens"]) for _, row in self.examples) / len(self.examples)

    def measure(self) -> None:
        """Time on the CPU is what other work on the machine changes least."""
        time.sleep(0.1)  # another's batches may still be in the making
        start = time.thread_time()
        for (transform, row), rng in zip(self.examples, rngs(0), strict=False):
            transform(row, rng)
        self.alone.append(len(self.examples) * self.row_tokens / (time.thread_time() - start))
        next(self.batches)  # the first were made beforehand
        next(self.batches)
        start = time.process_time()
        for _ in range(BATCHES):
            next(self.batches)
        self.pipeline.append(BATCHES * BATCH * self.row_tokens / (time.process_time() - start))

    def result(self) -> dict[str, Any]:
        rates = {"alone": round(statistics.median(self.alone)), "pipeline": round(statistics.median(self.pipeline))}
        return {"objective": self.name, "family": self.family, "row_tokens": round(self.row_tokens)} | rates


def subject(name: str, family: str, texts: Store, pairs: Store) -> Subject:
    """Return an objective with its rows: 1000 of them in memory, and batches as training makes them."""
    objective = objective_of(name, family)
    parts = [part.objective for part in objective.parts]
    members = []
    for part in parts:
        rows = build_rows(pairs if part.fields else texts, part, seed=0)
        members.append(Member(rows, Padded(part, objective.shapes) if len(parts) > 1 else part))
    drawn = [(members[number % len(members)], number) for number in np.random.default_rng(2).permutation(ROWS)]
    examples = [(member.transform, member.rows[number % len(member.rows)]) for member, number in drawn]
    return Subject(name, family, examples, train_batches(members, seed=0, batch_size=BATCH))


def cpu() -> str:
    """Return the CPU's model and how many of them this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all objectives")
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many counts (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in OBJECTIVES]:
        parser.error(f"no objective {unknown[0]}; there are {', '.join(OBJECTIVES)}")
    about = {"date": datetime.date.today().isoformat(), "cpu": cpu(), "python": platform.python_version()}
    about |= {"numpy": np.__version__, "grain": grain.__version__}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before Grain starts its threads
    with tempfile.TemporaryDirectory() as folder:
        texts, pairs = store(Path(folder) / "texts", 1000, 20), store(Path(folder) / "pairs", 25, 25)
        kinds: dict[str, Any] = {name: OBJECTIVES[name] for name in args.names or OBJECTIVES}
        carried = [(name, family) for name, kind in kinds.items() for family in FAMILIES if family in kind.families]
        subjects = [subject(name, family, texts, pairs) for name, family in carried]
        # Round by round over all of them, so that what disturbs for a while disturbs them alike. One more warms up.
        for number in range(args.rounds + 1):
            for one in subjects:
                one.measure()
                if not number:
                    one.alone.clear()
                    one.pipeline.clear()
        results = [one.result() for one in subjects]
        for one in subjects:
            one.batches.close()
    if args.json:
        print(json.dumps(about | {"results": results}))
        return
    print("| objective | family | tokens a row | alone, 1000 tokens/s | pipeline, 1000 tokens/s |")
    print("| --- | --- | ---: | ---: | ---: |")
    for result in results:
        rates = f"{result['alone'] / 1e3:,.0f} | {result['pipeline'] / 1e3:,.0f}"
        print(f"| `{result['objective']}` | {result['family']} | {result['row_tokens']} | {rates} |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))


if __name__ == "__main__":
    main()

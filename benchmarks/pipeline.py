"""Whether the data keep up on a CPU: how fast text becomes tokens, and batches beside the steps that need them.

    python benchmarks/pipeline.py [--megabytes 16] [--text FILE] [--rounds 3] [--json]

See benchmarks/README.md.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import numpy as np
import tokenizers
from objectives import cpu, store, vocabulary

from jaxformer.data import files, sources
from jaxformer.data.batches import Member, train_batches
from jaxformer.data.records import Source
from jaxformer.data.rows import build_rows
from jaxformer.data.store import Store, build_store
from jaxformer.objectives import OBJECTIVES
from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, train_tokenizer

KINDS: dict[str, Any] = {
    "WordPiece 4096": WordPiece(vocab_size=4096),
    "byte-level BPE 8192": ByteBPE(vocab_size=8192),
    "Unigram 8192": Unigram(vocab_size=8192),
}
TRAINED_ON = 2_000_000  # characters
# name: objective and its settings, family and visibility of the model, rows of a batch, and how long the step of the
# fastest rival takes, in ms on two cores.
STEPS: dict[str, tuple[str, dict[str, Any], str, str, int, float]] = {
    "C1 nanoGPT demo": ("causal_lm", {"sequence_length": 64}, "decoder_only", "causal", 12, 26),
    "C2 6 layers of 384": ("causal_lm", {"sequence_length": 256}, "decoder_only", "causal", 8, 945),
    "C3 GPT-2 124M": ("causal_lm", {"sequence_length": 256}, "decoder_only", "causal", 1, 992),
    "C4 BERT-base": ("masked_lm", {"sequence_length": 128}, "encoder_only", "full", 8, 2800),
    "C5 T5-small": ("span_corruption", {"sequence_length": 512}, "encoder_decoder", "causal", 2, 1130),
}
BATCHES = 50  # of a round


def beginning(source: Source, characters: float) -> list[str]:
    """Return the first training documents of a source, as many as have so many characters."""
    kept: list[str] = []
    for document in source.documents("train"):
        if characters <= 0:
            break
        kept.append(document)
        characters -= len(document)
    return kept


def seconds(work: Any) -> tuple[float, float, Any]:
    """Return how long it takes by the clock and on the CPU, all threads together, and what it returns."""
    clock, used = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - clock, time.process_time() - used, result


def tokenised(documents: list[str], tokenizer: Tokenizer, splitter: Any, rounds: int) -> dict[str, Any]:
    """Return the rates of building a store, and of the library alone, over the same documents.

    Raises SystemExit where the two give other tokens."""
    source: Any = SimpleNamespace(
        documents=lambda split, left_out: iter(documents), fingerprint=lambda split: "", splitter=splitter,
        amount=lambda split: 0,
    )  # fmt: skip

    def build() -> Store:
        with tempfile.TemporaryDirectory() as folder:
            made = build_store(source, "train", tokenizer, Path(folder))
            return Store(made.path, np.array(made.tokens), made.document_offsets, made.sentence_starts, "")

    def alone() -> int:
        return sum(
            len(one.ids)
            for start in range(0, len(documents), 512)
            for one in tokenizer.encode_batch(documents[start : start + 512])
        )

    made = build()
    expected = [one.ids for one in tokenizer.encode_batch(documents[:2000])]
    if made.tokens[: sum(map(len, expected))].tolist() != [number for ids in expected for number in ids]:
        raise SystemExit("the store has other tokens than the library gives")
    found = [(seconds(build)[:2], seconds(alone)[:2]) for _ in range(rounds)]
    count = len(made.tokens)
    (clock, used), (library_clock, library_used) = (
        tuple(statistics.median(both[place] for both in side) for place in (0, 1)) for side in zip(*found, strict=True)
    )
    return {
        "tokens": count,
        "per_second": round(count / clock),
        "per_cpu_second": round(count / used),
        "library_per_second": round(count / library_clock),
        "library_per_cpu_second": round(count / library_used),
    }


def batched(name: str, texts: Store, rounds: int) -> dict[str, Any]:
    """Return how long a batch takes, and how often it fits into the step that needs it."""
    objective_name, settings, family, visibility, size, step = STEPS[name]
    model = SimpleNamespace(family=family, visibility=visibility, token_types=2)
    objective = OBJECTIVES[objective_name](**settings).for_model(model).bind(vocabulary())
    batches = train_batches([Member(build_rows(texts, objective, seed=0), objective)], seed=0, batch_size=size)
    used = []
    for _ in range(rounds + 1):
        for _ in range(4):
            next(batches)  # some were made beforehand
        used.append(seconds(lambda: [next(batches) for _ in range(BATCHES)])[1] / BATCHES * 1000)
    batches.close()
    milliseconds = statistics.median(used[1:])
    return {"batch_cpu_ms": round(milliseconds, 3), "step_ms": step, "times": round(step / milliseconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=16, help="of text, at most (default: 16)")
    parser.add_argument("--text", default="", help="JSON lines with a field `text` (default: the built-in corpus)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    source: Source = files.JSONLines(path=args.text) if args.text else sources.StdlibDocs()
    documents = beginning(source, args.megabytes * 1e6)
    trained_on = beginning(source, TRAINED_ON)
    tokenising = {
        name: tokenised(documents, train_tokenizer(kind, trained_on), source.splitter, args.rounds)
        for name, kind in KINDS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        texts = store(Path(folder) / "texts", 1000, 20)
        batches = {name: batched(name, texts, args.rounds) for name in STEPS}
    about = {"date": datetime.date.today().isoformat(), "cpu": cpu(), "python": platform.python_version()}
    about |= {"numpy": np.__version__, "tokenizers": tokenizers.__version__, "grain": grain.__version__}
    about |= {"cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    about |= {"documents": len(documents), "characters": sum(map(len, documents))}
    if args.json:
        print(json.dumps(about | {"tokenising": tokenising, "batches": batches}))
        return
    print("| tokenizer | tokens | 1000 tokens/s | per s of CPU | the library alone, 1000 tokens/s | per s of CPU |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, found in tokenising.items():
        rates = " | ".join(f"{found[key] / 1e3:,.0f}" for key in list(found)[1:])
        print(f"| {name} | {found['tokens']:,} | {rates} |")
    print("\n| step | a batch, ms of CPU | the rival's step, ms | times |\n| --- | ---: | ---: | ---: |")
    for name, found in batches.items():
        print(f"| {name} | {found['batch_cpu_ms']} | {found['step_ms']:g} | {found['times']:,} |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))


if __name__ == "__main__":
    main()

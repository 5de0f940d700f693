"""How fast a model writes: our decoding against that of transformers on CPU, same weights, same tokens.

    python benchmarks/decoding.py [--rounds 2] [--cases gpt2-1 ...] [--json]

Needs torch and transformers (`pip install -e .[reference]`). See benchmarks/README.md.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = NEW = 64
CASES = {
    name: {"system": system, "rows": rows, "beams": beams}
    for name, system, rows, beams in (
        ("gpt2-1", "gpt2", 1, 1),
        ("gpt2-8", "gpt2", 8, 1),
        ("gpt2-16", "gpt2", 16, 1),
        ("t5-1", "t5", 1, 4),
        ("t5-4", "t5", 4, 4),
    )
}
ENDS = {"gpt2": 50256, "t5": 1}
THREADS = 2
CALLS = 5  # in one process; the first one compiles
# Ours keeps freed memory in the process: so does the other side.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def make(folder: Path) -> None:
    """Write random models, with weights so large that they do not only repeat themselves."""
    import torch
    import transformers

    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(initializer_range=0.06))
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
        )
    )
    with torch.no_grad():  # T5's decoder repeats itself until it looks at what it has written
        for name, weight in t5.decoder.named_parameters():
            weight *= 60 if "relative" in name else 10 if "SelfAttention.o" in name or "SelfAttention.v" in name else 1
    gpt2.save_pretrained(folder / "gpt2")
    t5.save_pretrained(folder / "t5")


def prompts(system: str, rows: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(10, {"gpt2": 50000, "t5": 32000}[system], (rows, PROMPT))


def ours(folder: Path, system: str, rows: int, beams: int) -> Any:
    """Return a function that writes all answers, [rows, tokens]; its first call makes the weights for decoding."""
    import jax
    import jax.numpy as jnp

    from jaxformer.devices.runtime import prepare_process
    from jaxformer.generation import GenerationConfig, TokenRules, decoding_weights, generate
    from jaxformer.interop.configs import layout_of, read_json
    from jaxformer.interop.importing import describe, named, read_params
    from jaxformer.interop.weights import stored_tensors
    from jaxformer.models import Model

    prepare_process()
    where = folder / system / "config.json"
    theirs = read_json(where)
    layout = layout_of(theirs, where)
    tensors = named(layout, stored_tensors(where.parent))
    config, classes = describe(layout, theirs, where, tensors)
    model = Model(config)
    params = jax.tree.map(jnp.asarray, read_params(layout, model, classes, tensors, where.parent))
    settings = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, num_beams=beams, length_penalty="power", length_alpha=float(beams > 1)
    )
    rules = TokenRules(end_id=ENDS[system])
    made: list[Any] = []

    def write() -> np.ndarray:
        if not made:
            made.append(decoding_weights(model, params))
        answers = generate(model, made[0], list(prompts(system, rows)), settings, rules)
        return np.array([answer[0].ids for answer in answers])

    return write


def theirs(folder: Path, system: str, rows: int, beams: int) -> Any:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    kind = {"gpt2": transformers.GPT2LMHeadModel, "t5": transformers.T5ForConditionalGeneration}[system]
    model = kind.from_pretrained(folder / system, attn_implementation="sdpa").eval()
    ids = torch.from_numpy(prompts(system, rows))
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": beams, "do_sample": False}
    settings |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": ENDS[system]}

    def write() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(ids, **settings).numpy()[:, -NEW:]

    return write


def measure(side: str, folder: Path, case: str) -> dict[str, Any]:
    """Time calls in this process; the first one by itself."""
    write = {"ours": ours, "theirs": theirs}[side](folder, **CASES[case])
    seconds, tokens = [], None
    for _ in range(CALLS):
        start = time.perf_counter()
        tokens = write()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"first": seconds[0], "seconds": seconds[1:], "peak_mb": peak, "tokens": np.asarray(tokens).tolist()}


def in_process(side: str, folder: Path, case: str, cache: Path) -> dict[str, Any]:
    """Run `measure` in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--cases", case]
    environment = {**os.environ, **MALLOC, "JAX_COMPILATION_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Return what both sides take, measured in turn; nothing without equal tokens."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as empty:  # nothing is compiled before the first round
        for _ in range(rounds):
            for side, runs in found.items():
                runs.append(in_process(side, folder, case, Path(empty)))
    tokens = [np.array(run["tokens"]) for runs in found.values() for run in runs]
    if not all(np.array_equal(tokens[0], other) for other in tokens):
        raise SystemExit(f"{case}: the two sides wrote different tokens; their times say nothing")
    result: dict[str, Any] = {"case": case, "distinct_tokens": len(np.unique(tokens[0]))}
    for side, runs in found.items():
        result[f"{side}_ms"] = round(1e3 * statistics.median(second for run in runs for second in run["seconds"]))
        result[f"{side}_first_s"] = round(runs[0]["first"], 1)
        result[f"{side}_peak_mb"] = round(max(run["peak_mb"] for run in runs))
    result["ours_first_compiled_s"] = round(
        statistics.median(run["first"] for run in found["ours"][1:] or found["ours"]), 1
    )
    return result | {"ratio": round(result["theirs_ms"] / result["ours_ms"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, metavar="CASE", help="default: all")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side, in turn (default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.folder, args.cases[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", f"import decoding, pathlib; decoding.make(pathlib.Path({folder!r}))"],
            cwd=Path(__file__).parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        results = []
        for case in args.cases:
            results.append(compare(case, args.rounds, Path(folder)))
            if not args.json:
                print(json.dumps(results[-1]), flush=True)
    about = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    if args.json:
        print(json.dumps(about | {"results": results}))


if __name__ == "__main__":
    main()

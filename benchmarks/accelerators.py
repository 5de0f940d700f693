"""G1 to G8: training steps on one accelerator, in bfloat16; on GPU beside PyTorch, compiled, with fused AdamW.

    python benchmarks/accelerators.py --runs G1,G4              # make bench-gpu RUNS=G1,G4: under four minutes a run
    python benchmarks/accelerators.py --device tpu --runs G1    # make bench-tpu: the same without a rival
    python benchmarks/accelerators.py --device cpu --tiny       # the same code at no size to speak of, as CI runs it

Before any figure, two layers of the model take 20 steps on the device and, in float32, on CPU: their losses must agree
within TOLERANCE, and the compiled step must hold the attention kernel. Then both sides take steps for 5 s, in turn,
three times, each time in a fresh process (harness.py), and their first 20 losses must agree, too.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import c4
import c5
import harness
import nanogpt
import numpy as np
import run as runner
import table
import trainers

PLATFORMS = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}  # as JAX calls them
KERNELS = {"gpu": ("__cudnn$fmha",), "tpu": ("tpu_custom_call",), "cpu": ()}  # one of them is in the compiled step
# Of losses, relative: bfloat16's products have 8 bits, and 20 steps add up what they round.
TOLERANCE, ROUNDS, RATE = 0.02, 3, 1e-4
SMALL = ("model.num_layers=2", "training.batch_size=2")
TINIEST = ("model.num_layers=2", "model.d_model=32", "model.d_ff=128", "model.num_heads=2", "model.head_dim=16")


def device() -> str:
    """Return what is measured, "gpu", "tpu" or "cpu": the processes of a run read it where they are told all else."""
    return os.environ.get("BENCHMARK_DEVICE", "gpu")


def is_tiny() -> bool:
    return bool(os.environ.get("BENCHMARK_TINY"))


def with_rival(name: str) -> bool:
    return device() != "tpu" and RUNS[name].rival is not None and not os.environ.get("BENCHMARK_ALONE")


class Run(NamedTuple):
    """One row of the table: our experiment and what of it is changed, rows a step, the rival, and the floor, of one
    H100."""

    what: str
    spec: str
    rows: int
    overrides: tuple[str, ...]
    tiny: tuple[str, ...]  # what makes its rows short
    rival: Callable[[Any], Callable[[Path], Any]] | None  # from our model's config
    unit: str
    least: float | None


def _gpt(config: Any) -> Callable[[Path], Any]:
    return functools.partial(nanogpt.build, heads=config.num_heads, compiled=not is_tiny())


def _bert(config: Any) -> Callable[[Path], Any]:
    return trainers.from_transformers("BertForMaskedLM", c4.run, not is_tiny(), attn_implementation="sdpa")


def _t5(config: Any) -> Callable[[Path], Any]:
    return trainers.from_transformers("T5ForConditionalGeneration", c5.run, not is_tiny())


_GPT = ("model.vocab_size=50304", "objective.sequence_length=1024")  # both sides with nanoGPT's padded vocabulary
_SHORT = ("objective.sequence_length=32", "model.max_length=32", "model.vocab_size=64")


def _masked(length: int, predictions: int) -> tuple[str, ...]:
    shape = (f"objective.sequence_length={length}", f"objective.max_predictions={predictions}")
    return (*shape, "objective.next_sentence=False", "model.vocab_size=30528")


_BERT_SHORT = (*_SHORT, "objective.max_predictions=4")
_NO_Z = ("objective.z_loss=0",)  # the rival has none
_T5_SHORT = ("objective.sequence_length=32", "model.max_length=64", "model.vocab_size=164")
RUNS: dict[str, Run] = {
    "g1": Run("GPT-2 124M, 32 × 1024", "gpt2:124m", 32, _GPT, _SHORT, _gpt, "k tokens/s", 400),
    "g2": Run("GPT-2 355M, 16 × 1024", "gpt2:355m", 16, _GPT, _SHORT, _gpt, "k tokens/s", 155),
    "g3": Run("GPT-2 1558M, 8 × 1024", "gpt2:1558m", 8, _GPT, _SHORT, _gpt, "k tokens/s", 42),
    "g4": Run("BERT-base, 256 × 128", "bert:base", 256, _masked(128, 20), _BERT_SHORT, _bert, "rows/s", 4500),
    "g5": Run("BERT-large, 32 × 512", "bert:large", 32, _masked(512, 77), _BERT_SHORT, _bert, "rows/s", 370),
    "g6": Run("BERT-base, packed, 64 × 512", "bert:base", 64, _masked(512, 77), _BERT_SHORT, None, "rows/s", None),
    "g7": Run("T5 v1.1 base, 64 × (512 + 114)", "t5:1_1_base", 64, _NO_Z, _T5_SHORT, _t5, "rows/s", 700),
    "g8": Run("T5 v1.1 large, 16 × (512 + 114)", "t5:1_1_large", 16, _NO_Z, _T5_SHORT, _t5, "rows/s", 180),
}  # fmt: skip


def config_of(name: str, *more: str) -> tuple[str, tuple[str, ...]]:
    """Return our config of a run, as `configs.load` takes it."""
    one = RUNS[name]
    if name == "g6":  # BERT's own objective packs no rows, and attention is chosen by what an objective promises
        from jaxformer.objectives.masked_lm import MaskedLM

        MaskedLM.packed = True
    sizes = (*one.tiny, *TINIEST, "training.batch_size=2") if is_tiny() else (f"training.batch_size={one.rows}",)
    how = ("training.compute_dtype=bfloat16", f"optimizer.learning_rate={RATE}")
    return one.spec, (*trainers.SAME, *one.overrides, *how, *sizes, *more)


def reference_of(config: tuple[str, tuple[str, ...]]) -> Any:
    """Return the model of transformers, freshly drawn, whose weights both sides take."""
    import transformers

    from jaxformer.interop.configs import find_layout, write_config
    from jaxformer.interop.layouts import standing

    model = trainers.learner_of(config).model
    classes = standing(model)
    layout = find_layout(model.config, classes)
    kind = getattr(transformers, layout.classes[classes].name)
    extra = {"decoder_start_token_id": 0} if model.config.family == "encoder_decoder" else {}
    reference = kind(kind.config_class(**write_config(layout, model.config) | extra))
    if reference.config.tie_word_embeddings and not model.config.tied_embeddings:
        # Their T5 is always made with its output tied to the embeddings, yet reads an output of its own, as 1.1 has.
        reference.lm_head.weight = type(reference.lm_head.weight)(reference.lm_head.weight.detach().clone())
        reference.config.tie_word_embeddings = False
    return reference


def make(name: str, folder: Path) -> None:
    """Write what a run reads: batches, what a step costs, and, where there is a rival, weights."""
    config = config_of(name)
    if with_rival(name):
        trainers.make(config, functools.partial(reference_of, config), folder)
        return
    trainers.write_batches(config, folder, packed if name == "g6" else dict)


def packed(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch each of whose rows holds two texts, of nine and eleven twentieths of it."""
    length = batch["inputs"].shape[1]
    first = 9 * length // 20
    places = np.arange(length)
    second = np.broadcast_to(places >= first, batch["inputs"].shape)
    return batch | {
        "segment_ids": 1 + second.astype(np.int32),
        "positions": (places - first * second).astype(np.int32),
    }


def steps_alone(config: tuple[str, tuple[str, ...]], count: int) -> tuple[list[float], str, str]:
    """Return the losses of so many steps from our own initialisation, the compiled step's text, and the device."""
    import jax

    from jaxformer.devices import prepare_process

    prepare_process()
    learner = trainers.learner_of(config)
    state, phase = learner.last.make_state(learner.rngs[0]), learner.config.phases[-1]
    batches = [trainers.batch_of(learner.config, number) for number in range(trainers.BATCHES)]
    lowered = learner.last.train_step.lower(state, batches[0], learner.rngs[1], 1.0)
    text, losses = str(lowered.compile().as_text()), []
    for number in range(count):
        state, metrics = learner.step(number + 1, phase, state, batches[number % len(batches)])
        losses.append(float(metrics["loss"]))
    return losses, text, jax.devices()[0].device_kind


def checked(name: str, platform: str, dtype: str, folder: Path, number: int) -> dict[str, Any]:
    """Be one side of the comparison with CPU: two layers, two rows, the first 20 losses."""
    os.environ["JAX_PLATFORMS"] = platform
    config = config_of(name, *SMALL, f"training.compute_dtype={dtype}")
    losses, text, kind = steps_alone(config, trainers.CHECKED)
    return {"checked": losses, "kernels": [kernel for kernel in KERNELS[device()] if kernel in text], "kind": kind}


def ours(name: str, folder: Path, number: int) -> dict[str, Any]:
    """Be our side: the step of `jaxformer train`, from the rival's weights where there is one."""
    os.environ["JAX_PLATFORMS"] = PLATFORMS[device()]
    _hurry()
    found = trainers.ours(config_of(name), folder, number)
    import jax

    memory = jax.local_devices()[0].memory_stats() or {}
    return measured_in(name, found) | {"device_mb": memory.get("peak_bytes_in_use", 0) / 1e6}


def theirs(name: str, folder: Path, number: int) -> dict[str, Any]:
    """Be the rival's side."""
    import torch

    from jaxformer import config as configs

    _hurry()
    build = RUNS[name].rival(configs.load(*config_of(name)).model)
    found = trainers.theirs(build, RATE, folder, number, PLATFORMS[device()], "bfloat16")
    mb = torch.cuda.max_memory_allocated() / 1e6 if device() == "gpu" else 0.0
    return measured_in(name, found) | {"device_mb": mb}


def _hurry() -> None:
    """Measure tiny steps for a moment: nobody reads their figures."""
    if is_tiny():
        trainers.WINDOW = 0.2


def measured_in(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return a side's figures with its rate, in tokens or rows a second."""
    rows, per_row = (2, 32) if is_tiny() else (RUNS[name].rows, 1024)
    count = rows * per_row if "tokens" in RUNS[name].unit else rows
    return found | {
        "figures": {"step": found["figures"]["step"], "rate": [count / s for s in found["figures"]["step"]]}
    }


def case(name: str) -> harness.Case:
    """Return the case of a run, under the name of the file's own."""
    one = RUNS[name]
    sides: dict[str, Callable[[Path, int], dict[str, Any]]] = {"ours": functools.partial(ours, name)}
    if with_rival(name):
        sides["torch.compile"] = functools.partial(theirs, name)
    measures = (harness.Measure(), harness.Measure(key="rate", unit=one.unit, least=None if is_tiny() else one.least))
    return harness.Case(
        name=name, what=one.what, sides=sides, measures=measures, make=functools.partial(make, name),
        tolerance=TOLERANCE, rounds=1 if is_tiny() else ROUNDS, memory="device_mb",
    )  # fmt: skip


def check_case(name: str) -> harness.Case:
    """Return the comparison with CPU as a case, so that its sides are processes like all others."""
    sides = {
        "ours": functools.partial(checked, name, PLATFORMS[device()], "bfloat16"),
        "cpu": functools.partial(checked, name, "cpu", "float32"),
    }
    return harness.Case(name=f"{name}-check", what=RUNS[name].what, sides=sides, measures=(), tolerance=TOLERANCE)


CASES = tuple(one for name in RUNS for one in (case(name), check_case(name)))  # as the processes look them up


def against_cpu(name: str, folder: Path) -> dict[str, Any]:
    """Return the device, the kernels in its compiled step, and how far its losses are from CPU's. Raises Refused for
    losses that differ, and for a step without the kernel."""
    sides = [
        harness.in_process("accelerators", f"{name}-check", side, folder, 0) | {"side": side, "round": 0}
        for side in ("ours", "cpu")
    ]
    harness.check(check_case(name), sides)
    kernels = KERNELS[device()]
    if kernels and not sides[0]["kernels"]:
        raise harness.Refused(f"no {' or '.join(kernels)} in the compiled step: plain attention would be timed")
    found = {"accelerator": sides[0]["kind"], "kernels": sides[0]["kernels"]}
    return found | {"against_cpu": harness.parity(check_case(name), sides)}


def measured(name: str, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of one run: no figures before losses and kernels are right."""
    began, one = time.monotonic(), case(name)
    record: dict[str, Any] = {"name": name, "what": one.what} | dict(about) | {"idle": True, "rows": [], "runs": []}
    try:
        record |= against_cpu(name, folder)
        where = folder / "steps"
        where.mkdir()
        runs = harness.compare("accelerators", one, where, anyway=True)
        record |= {"rows": harness.rows(one, runs, {}), "parity": harness.parity(one, runs)}
        record["runs"] = [{key: value for key, value in run.items() if key != "checked"} for run in runs]
    except Exception as error:  # whatever one run meets
        record["refused"] = str(error) or type(error).__name__
    return record | {"seconds": round(time.monotonic() - began)}


def page(device: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of all runs as a Markdown page; what was not measured says so."""
    lines = []
    for name, one in RUNS.items():
        done = [record for record in records if record["name"] == name]
        absent = [f"| {name.upper()} {one.what} | not run |" + " |" * (len(table.HEAD) - 2)]
        lines += table.lines(done[0]) if done else absent
    first = next((record for record in records if "accelerator" in record), None)
    where = f"Not run: no device was at hand. `make bench-{device}` measures and writes this page."
    if first is not None:
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
        where = f"{first['date']}, commit {first['commit']}, one {first['accelerator']}; {versions}."
    rival = " theirs is PyTorch, compiled, with fused AdamW and autocast;" if device == "gpu" else ""
    head = [f"| {' | '.join(table.HEAD)} |", "| --- |" + " ---: |" * (len(table.HEAD) - 1)]
    return f"""# Training steps on one {device.upper()}

{where}

bfloat16 with float32 parameters;{rival} medians of {ROUNDS} rounds in turn, in fresh processes.
Before any figure: losses of 20 steps within {TOLERANCE:.0%} of CPU's, and the attention kernel in the compiled step.
Floors are for one H100.

""" + "\n".join([*head, *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="", help="of G1 to G8, comma-separated (default: all)")
    parser.add_argument("--device", choices=tuple(PLATFORMS), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models, nothing compiled by PyTorch")
    parser.add_argument("--alone", action="store_true", help="without the rival")
    parser.add_argument(
        "--output", type=Path, help="folder for the JSON files and the table; default: none are written"
    )
    parser.add_argument("--not-run", action="store_true", help="only write the table that says so")
    args = parser.parse_args()
    names = [name.strip().lower() for name in args.runs.split(",") if name.strip()] or list(RUNS)
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"no run {unknown[0]}; there are {', '.join(name.upper() for name in RUNS)}")
    os.environ |= {"BENCHMARK_DEVICE": args.device, "BENCHMARK_TINY": "1" if args.tiny else ""}
    os.environ["BENCHMARK_ALONE"] = "1" if args.alone else ""
    records = [] if args.not_run else _all(names, args.output)
    text = page(args.device, records)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / f"{args.device}.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any("refused" in record for record in records))


def _all(names: Sequence[str], output: Path | None) -> list[dict[str, Any]]:
    about, records = harness.about(), []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            records.append(measured(name, Path(folder), about))
        print("\n".join(table.lines(records[-1])), f"({records[-1]['seconds']} s)", file=sys.stderr, flush=True)
        if output:
            runner.write(output / f"{device()}-{name}.json", records[-1])
    return records


if __name__ == "__main__":
    sys.exit(main())

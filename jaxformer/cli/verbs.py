"""What each verb of the command line does, once its words are read. Nothing heavy is imported before it is needed."""

import argparse
import contextlib
import functools
import gc
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxformer.cli import reproductions, sweeps, transfers
from jaxformer.cli.flags import with_flags
from jaxformer.errors import UserError
from jaxformer.storage import finite, local_path, location


def default_workdir(spec: str) -> Path:
    """Return runs/NAME[-ARG] for a config NAME[:ARG] or FILE[:ARG]."""
    file = re.match(
        r"(.*\.py)(:|$)", spec
    )  # of a file the folders are left out, of an experiment's name they are a part
    name, _, arg = (Path(spec).name if file else spec).partition(":")
    return Path("runs") / re.sub(r"[^\w.-]+", "-", "-".join(part for part in (name.removesuffix(".py"), arg) if part))


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Collect no garbage while modules are imported: what they make stays, and looking it through is a tenth of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def train(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.seeds:
        return sweeps.train_seeds(args, overrides, default_workdir(args.config))
    with _importing():
        from jaxformer import config as configs
        from jaxformer.devices import is_first
        from jaxformer.runs import Display, train
        from jaxformer.tables import metrics_line

    config = configs.load(args.config, overrides)
    workdir = location(args.workdir) if args.workdir else default_workdir(args.config)
    with Display(quiet=args.quiet) as display:
        results = train(
            config, workdir, allow_config_change=args.allow_config_change, display=display, profile=args.profile
        )
        if is_first():
            display.note(f"done: {workdir}  {metrics_line(results)}")
    return 0


def evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.checkpoint import Which
    from jaxformer.devices import is_first
    from jaxformer.runs import Display, evaluate_run

    which = Which(args.step, args.average, args.parameters)
    with Display() as display:
        result = evaluate_run(
            location(args.workdir), args.split, overrides, display, which=which, allow_change=args.allow_config_change
        )
    if not is_first():
        return 0
    if args.json:
        bounds = {f"{name}_interval": list(pair) for name, pair in result.intervals.items()}
        print(json.dumps(finite(result.metrics | bounds)))
    else:
        for name, value in result.metrics.items():
            low, high = result.intervals.get(name, (None, None))
            interval = "" if low is None else f"  95 % interval {low:.4g} to {high:.4g}"
            print(f"{name:24} {value if isinstance(value, int) else f'{value:.6g}'}{interval}")
    return 0


def _loaded(args: argparse.Namespace, overrides: Sequence[str] = (), spread: bool = False) -> Any:
    """Return the run that is meant, with the parameters that are, on the first device or spread over all of them."""
    from jaxformer.checkpoint import Which
    from jaxformer.runs import load, load_spread

    allowed = args.allow_config_change
    if spread:
        return load_spread(args.workdir, Which(args.step, args.average, args.parameters), overrides, allowed)
    return load(
        args.workdir, args.step, overrides, average=args.average, parameters=args.parameters, allow_change=allowed
    )


def generate(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.generation import GenerationConfig

    overrides = with_flags(args, "generation", GenerationConfig, _reading(overrides, args.input))
    if args.stream and (args.output or args.json):
        raise UserError(f"--stream: text is shown as it comes; leave out {'--output' if args.output else '--json'}")

    from jaxformer.devices import has_peers, is_first
    from jaxformer.runs import Display, answering, given

    run = _loaded(args, overrides, spread=True)
    if has_peers() and not args.prompts and args.input in ("", given.STDIN):
        raise UserError("--input: several processes cannot share standard input; name a file")
    generation, continues = run.config.generation, run.config.model.family == "decoder_only"
    streams = args.stream
    if streams is None:  # a person who waits for one answer
        single = generation.num_beams == generation.num_answers == 1 and not (args.output or args.json)
        streams = single and bool(args.prompts) and sys.stdout.isatty()
    shown = None if args.json else functools.partial(answering.as_text, continues=continues)
    output = answering.Output(_output(args) if args.output else None, args.overwrite, args.skip_malformed, shown=shown)
    field = args.field or answering.field_of(run)
    display = Display(quiet=not is_first())
    with given.given(args.prompts, args.input, run.config.data, [field]) as rows:
        if streams:  # without a bar, which would draw over the text
            put = functools.partial(print, end="", flush=True) if is_first() else lambda text: None
            answering.show(run, rows, field, put, display)
        else:
            facts = answering.facts_of(run)
            with display:
                answering.generate(run, rows, field, output, facts, display)
    return 0


def fill(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.runs import Display, answering, filling, given

    shown = None if args.json else filling.as_text
    output = answering.Output(_output(args) if args.output else None, args.overwrite, args.skip_malformed, shown=shown)
    run = _loaded(args, _reading(overrides, args.input))
    targets = tuple(word for word in args.targets.split(",") if word)
    asking = filling.Asking(args.top, targets, args.one_by_one, args.field or answering.field_of(run))
    with Display() as display, given.given(args.texts, args.input, run.config.data, [asking.field]) as rows:
        answering.fill(run, asking, rows, output, answering.facts_of(run), display)
    return 0


def predict(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.runs import Display, answering, given, task_of

    path = _output(args) if args.output else None
    output = answering.Output(path, args.overwrite, args.skip_malformed, args.format == "official")
    run = _loaded(args)
    run = run.overridden(_reading(overrides, args.input))
    task = task_of(run, args.task)
    with Display() as display, given.given(args.texts, args.input, run.config.data, task.fields) as rows:
        answering.predict(run, task, rows, output, answering.facts_of(run), display)
    return 0


def score(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.document and (args.context is not None or args.choose):
        raise UserError(
            f"--document: it has no {'context' if args.choose is False else 'choices'}; leave one of them out"
        )
    if (args.context is not None or args.choose) and not args.texts:
        raise UserError("--context and --choose are for TEXTs of the command line; rows of a file bring their own")
    if (args.stride or args.length) and not args.document:
        raise UserError("--stride and --length: they are for --document; add it, or leave them out")

    from jaxformer.runs import Display, answering, given
    from jaxformer.runs.answer_rows import Output
    from jaxformer.runs.documents import window_of
    from jaxformer.runs.score_rows import Scoring, score
    from jaxformer.runs.scoring import Asking

    output = Output(_output(args) if args.output else None, args.overwrite, args.skip_malformed)
    run = _loaded(args).overridden(_reading(overrides, args.input))
    asking = Asking(args.end, args.per_token, args.normalization, args.unconditional)
    field = args.field or answering.field_of(run)
    scoring = Scoring(field, asking, window_of(run, args.stride, args.length) if args.document else None)
    texts, fields = args.texts, [field]
    if args.choose:
        texts, fields = [json.dumps({"context": args.context or "", "choices": texts})], ["context", "choices"]
    elif args.context is not None:
        texts = [json.dumps({"context": args.context, "continuation": text}) for text in texts]
        fields = ["context", "continuation"]
    with Display() as display, given.given(texts, args.input, run.config.data, fields, args.document) as rows:
        score(run, rows, scoring, output, answering.facts_of(run), display)
    return 0


def embed(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.runs import Display, answering, given

    output = answering.Output(_output(args), args.overwrite)
    run = _loaded(args)
    run = run.overridden(_reading(overrides, args.input))
    field = args.field or answering.field_of(run)
    with Display() as display, given.given(args.texts, args.input, run.config.data, [field]) as rows:
        answering.embed(run, rows, field, (args.pooling, args.layer), output, display)
    return 0


def _output(args: argparse.Namespace) -> Path:
    path = local_path(args.output, "--output")
    if args.input and path.exists() and Path(args.input).exists() and path.samefile(args.input):
        raise UserError(f"--output: {path} is the input; choose another file")
    return path


def _reading(overrides: list[str], file: str) -> list[str]:
    """Return overrides in which another kind of data is that of the file that is read."""
    names = {override.partition("=")[0] for override in overrides}
    return (
        [*overrides, f"data.path={file}"] if "data.name" in names and "data.path" not in names and file else overrides
    )


def report(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import report

    folders, output = [location(run) for run in args.runs], local_path(args.output or "report", "--output")
    if len(folders) == 1 and report.is_sweep(folders[0]):
        return sweeps.report_sweep(args, folders[0])
    if len(folders) == 1 and report.is_transfer(folders[0]):
        return transfers.report_transfer(args, folders[0])
    if len(folders) == 1 and report.is_reproduction(folders[0]):
        return reproductions.report_reproduction(args, folders[0])
    runs = [report.read_run(folder) for folder in folders]
    if args.json:
        print(json.dumps(report.summary_rows(runs)))
        return 0
    page = report.write_report(folders, output)
    report.print_summary(runs)
    print(f"report: {page}")
    return 0


def import_weights(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.interop import import_run

    tokenizer = location(args.tokenizer) if args.tokenizer else None
    count = import_run(args.source, location(args.workdir), tokenizer, revision=args.revision)
    print(f"{args.workdir}: {count:,} parameters of {args.source}")
    return 0


def export_weights(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.checkpoint import Which
    from jaxformer.interop import export_run

    which = Which(args.step, args.average, args.parameters)
    name = export_run(location(args.workdir), location(args.out), which=which, allow_change=args.allow_config_change)
    print(f"{args.out}: {name}.from_pretrained loads it")
    return 0


def tokenizer_train(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import config as configs
    from jaxformer.data import corpus_tokenizer
    from jaxformer.errors import disk_errors
    from jaxformer.runs import Display

    output = local_path(args.output, "--output")
    config = configs.load(args.config, overrides)
    with Display() as display:
        tokenizer = corpus_tokenizer(config.tokenizer, config.data, config.supervision, display.progress, display.note)
    with disk_errors(args.output):
        output.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(output)
    print(f"{args.output}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}")
    return 0


def _tokenizer(where: str) -> Any:
    from jaxformer.tokenizers import load_tokenizer

    return load_tokenizer(where)


def tokenizer_encode(args: argparse.Namespace, overrides: list[str]) -> int:
    tokenizer = _tokenizer(args.tokenizer)
    for text in args.texts:
        ids = tokenizer.encode(text, reads="all" if args.special else "").tolist()
        print(json.dumps({"ids": ids, "tokens": tokenizer.tokens(ids)}) if args.json else " ".join(map(str, ids)))
    return 0


def tokenizer_decode(args: argparse.Namespace, overrides: list[str]) -> int:
    tokenizer = _tokenizer(args.tokenizer)
    outside = [number for number in args.ids if not 0 <= number < tokenizer.vocab_size]
    if outside:
        raise UserError(f"id {outside[0]}: the tokenizer has ids 0 to {tokenizer.vocab_size - 1}")
    text = tokenizer.decode(args.ids, skip_special=False)
    print(json.dumps({"text": text}) if args.json else text)
    return 0


def tokenizer_show(args: argparse.Namespace, overrides: list[str]) -> int:
    tokenizer = _tokenizer(args.tokenizer)
    vocabulary = tokenizer.vocabulary
    facts = {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special": {role: f"{number} {tokenizer.tokens([number])[0]}" for role, number in vocabulary.special.items()},
        "sentinels": len(vocabulary.sentinels),
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        for key, entry in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{name:12} {key:10} {entry}" if key else f"{name:12} {entry}")
    return 0


def models(args: argparse.Namespace, overrides: list[str]) -> int:
    # Counting computes nothing: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer.explain import catalog

    picture = None if args.plot is None else local_path(args.plot, "--plot")
    if picture:
        catalog.check_format(picture)
    entries = catalog.entries()
    if picture:
        catalog.plot(entries, picture)
    if args.json:
        print(json.dumps(entries))
    elif picture:
        print(f"plot: {picture}")
    else:
        catalog.print_table(entries)
    return 0


def objectives(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.explain import compatibility

    if args.json:
        print(json.dumps(compatibility.entries()))
    else:
        compatibility.print_table()
    return 0


def objectives_show(args: argparse.Namespace, overrides: list[str]) -> int:
    # Nothing is computed: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer.explain import examples, showing

    shown = examples.draw_examples(
        local_path(args.text, "--text"), args.name, config=args.config,
        tokenizer=location(args.tokenizer) if args.tokenizer else None,
        family=args.family, visibility=args.visibility, count=args.examples, length=args.length, seed=args.seed,
        overrides=overrides,
    )  # fmt: skip
    if args.json:
        print(json.dumps(showing.as_json(shown)))
    else:
        showing.print_examples(shown)
    return 0


def plan(args: argparse.Namespace, overrides: list[str]) -> int:
    # Nothing is computed: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer import config as configs
    from jaxformer.planning import fit, plan
    from jaxformer.runs import Display

    config = configs.load(args.config, overrides)
    arguments = {"num_devices": args.devices, "chip": args.chip, "utilisation": args.utilisation, "watts": args.watts}
    if args.fit:
        with Display() as display:
            made = fit.find_placements(config, **arguments, note=display.note)
    else:
        made = plan.make_plan(config, **arguments)
    if args.json:
        print(json.dumps(made))
    elif args.fit:
        fit.print_placements(made)
    else:
        plan.print_plan(made)
    return 0


def launch(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import config as configs
    from jaxformer.launch import places

    inner = args.inner
    workdir = getattr(inner, "workdir", None) or (str(default_workdir(inner.config)) if inner.verb == "train" else "")
    workdir = getattr(inner, "study", None) or workdir
    job, options = places.described(args.place, args.command, workdir, vars(args))
    if inner.verb == "train":  # what is wrong with the config shows here, before machines are paid for
        configs.load(inner.config, inner.overrides)
    if inner.verb == "sweep":
        sweeps.check_launch(inner, inner.overrides, (job, options))
    if inner.verb == "reproduce":
        reproductions.check_launch(inner)
    if args.dry_run:
        print(places.PLACES[args.place].dry_run(job, options), end="")
        return 0
    return places.launch(args.place, job, options, getattr(args, "detach", False))


def launch_status(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.launch import places

    places.show(args.name, args.lines, args.json)
    return 0


def launch_act(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.launch import places

    places.act(args.action, args.name)
    return 0

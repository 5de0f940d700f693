"""The command line: thin verbs over the library. Nothing heavy is imported before it is known to be needed."""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxformer import __version__
from jaxformer.errors import Interrupted, UserError

OVERRIDES = "--config.SECTION.KEY=VALUE overrides any key of the config"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 the user can fix it, 75 preempted after saving, 130 Ctrl-C, 1 our fault.

    A process that fails and has peers does not return: it ends, so that they do not wait for it.
    """
    code = _main(arguments)
    if code not in (0, 75) and _has_peers():
        from jaxformer.runtime import leave

        leave(code)
    return code


def _has_peers() -> bool:
    if "jaxformer.runtime" not in sys.modules:
        return False
    from jaxformer.runtime import has_peers

    return has_peers()


def _main(arguments: Sequence[str] | None) -> int:
    # XLA logs what concerns its developers; ours reaches Python as an exception. Read when JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    words = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [word.removeprefix("--config.") for word in words if word.startswith("--config.")]
    parser = _parser()
    args = parser.parse_args([word for word in words if not word.startswith("--config.")])
    try:
        code = _run(args, overrides)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except UserError as error:
        if args.traceback:
            traceback.print_exc()
        print(f"jaxformer {args.verb}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"jaxformer {args.verb}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print(f"jaxformer {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
            return 1
        if type(error).__name__ == "JaxRuntimeError" and _has_peers():
            what = str(error).strip().splitlines()
            print(
                f"jaxformer {args.verb}: another process of this run has gone, and its own message says why; stopped "
                f"(seen here: {what[0] if what else ''})",
                file=sys.stderr,
            )
            return 1
        log = _log_traceback(getattr(args, "workdir", None))
        what = str(error).strip().splitlines()
        print(
            f"jaxformer {args.verb}: internal error: {type(error).__name__}: {what[0] if what else ''} "
            f"(traceback in {log}; --traceback shows it)",
            file=sys.stderr,
        )
        return 1


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides and not args.takes_overrides:
        raise UserError(f"--config.{overrides[0]}: this verb takes no config keys")
    return args.run(args, overrides)


def _log_traceback(workdir: str | None) -> Path:
    """Write the traceback into the run directory where there is one, else into a fresh file that is nobody else's."""
    text = traceback.format_exc()
    if workdir and Path(workdir).is_dir():
        path = Path(workdir) / "error.log"
        with contextlib.suppress(OSError):  # a full disk may be what failed
            path.write_text(text, encoding="utf-8")
            return path
    with tempfile.NamedTemporaryFile("w", prefix="jaxformer-error-", suffix=".log", delete=False) as file:
        file.write(text)
    return Path(file.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxformer",
        description="Pretrain, fine-tune and judge the three Transformer families in JAX.",
        epilog="example: jaxformer train --config=bert:smoke   (jaxformer VERB --help has one for every verb)",
    )
    parser.add_argument("--version", action="version", version=f"jaxformer {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        name: str, run: Callable[..., int], text: str, example: str, *, overrides: bool = False, within: Any = verbs
    ) -> argparse.ArgumentParser:
        # No abbreviations: a mistyped flag is an error, not a guess.
        epilog = f"example: jaxformer {example}" + (f"\n{OVERRIDES}" if overrides else "")
        verb = within.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_argument("--traceback", action="store_true", help="on an error, show Python's traceback")
        verb.set_defaults(run=run, takes_overrides=overrides)
        return verb

    train = add("train", _train, "train, or resume, the run of a config", "train --config=bert:smoke", overrides=True)
    train.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    train.add_argument("--workdir", metavar="DIR", help="the run directory (default: runs/NAME[-ARG])")
    train.add_argument("--allow-config-change", action="store_true", help="resume although the config differs")
    train.add_argument("--profile", action="store_true", help="write a trace of a few steps to DIR/profile")
    train.add_argument("--quiet", action="store_true", help="show nothing but errors")

    evaluate = add(
        "evaluate", _evaluate, "judge a run on held-out data", "evaluate --workdir=runs/bert-smoke", overrides=True
    )
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    evaluate.add_argument(
        "--split", default="validation", choices=("validation", "test", "train"), help="default: validation"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    generate = add(
        "generate", _generate, "continue a prompt, or answer it", 'generate --workdir=runs/gpt-smoke "Return the"'
    )
    generate.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts (default: one per line of stdin)")
    generate.add_argument("--temperature", type=float, help="0 takes the likeliest token; above 0 samples")
    generate.add_argument("--max-new-tokens", type=int, help="longest answer, in tokens")
    generate.add_argument("--seed", type=int, help="seed of the sampling")
    generate.add_argument("--json", action="store_true", help="print JSON")

    report = add("report", _report, "write a page with plots and a table of runs", "report runs/* --output=report")
    report.add_argument("runs", nargs="+", metavar="DIR", help="run directories")
    report.add_argument("--output", default="report", metavar="DIR", help="where the page goes (default: report)")
    report.add_argument("--json", action="store_true", help="print the table as JSON and write nothing")

    imports = add(
        "import", _import, "make a run of weights in Hugging Face format",
        "import FOLDER --workdir=runs/imported   (or a hub's name, as google-bert/bert-base-uncased)",
    )  # fmt: skip
    imports.add_argument("source", metavar="FOLDER|NAME", help="config.json, safetensors and tokenizer files")
    imports.add_argument("--workdir", required=True, metavar="DIR", help="the new run directory")
    imports.add_argument("--tokenizer", metavar="FILE|DIR", help="tokenizer files, where the folder has none")
    imports.add_argument("--revision", metavar="NAME", help="a branch, tag or commit of the hub's repository")

    export = add(
        "export", _export, "write a run's newest checkpoint in Hugging Face format",
        "export --workdir=runs/gpt-smoke gpt-smoke",
    )  # fmt: skip
    export.add_argument("out", metavar="OUT", help="the new folder")
    export.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    export.add_argument("--format", default="huggingface", choices=("huggingface",), help="default: huggingface")

    tokenizer = verbs.add_parser(
        "tokenizer",
        help="train and try tokenizers",
        description="Train and try tokenizers.",
        epilog="example: jaxformer tokenizer show --tokenizer=runs/bert-smoke",
        allow_abbrev=False,
    )
    actions = tokenizer.add_subparsers(dest="action", metavar="ACTION", required=True)
    trained = add(
        "train", _tokenizer_train, "train the tokenizer of a config on its data",
        "tokenizer train --config=bert:smoke --output=tokenizer.json", overrides=True, within=actions,
    )  # fmt: skip
    trained.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    trained.add_argument("--output", required=True, metavar="FILE", help="where the tokenizer.json goes")
    for name, run, text, words in (
        ("encode", _tokenizer_encode, "turn text into ids", ("texts", "TEXT")),
        ("decode", _tokenizer_decode, "turn ids into text", ("ids", "ID")),
        ("show", _tokenizer_show, "show a tokenizer's sizes and special tokens", None),
    ):
        ending = {"encode": ' "Some text"', "decode": " 17 4 23", "show": ""}[name]
        action = add(name, run, text, f"tokenizer {name} --tokenizer=runs/bert-smoke{ending}", within=actions)
        action.add_argument("--tokenizer", required=True, metavar="FILE|DIR", help="a tokenizer.json or a run")
        if words:
            action.add_argument(words[0], nargs="+", metavar=words[1], type=int if name == "decode" else str)
        action.add_argument("--json", action="store_true", help="print JSON")

    models = add("models", _models, "list the presets of the eight systems", "models --plot=models.png")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--plot", metavar="FILE", help="draw sizes over time instead: .png, .svg or .pdf")

    objectives = add(
        "objectives", _objectives, "list the objectives and the families of models that they train",
        "objectives   (jaxformer objectives show NAME --text=FILE shows one at work)",
    )  # fmt: skip
    objectives.add_argument("--json", action="store_true", help="print JSON")
    actions = objectives.add_subparsers(dest="action", metavar="ACTION")
    show = add(
        "show", _objectives_show, "show what an objective makes of a text",
        "objectives show masked_lm --text=README.md", overrides=True, within=actions,
    )  # fmt: skip
    show.add_argument("name", nargs="?", default="", metavar="NAME", help="the objective")
    show.add_argument("--config", default="", metavar="NAME[:ARG]|FILE[:ARG]", help="take it from an experiment")
    show.add_argument("--text", required=True, metavar="FILE", help="plain text, or .jsonl for fields of its lines")
    show.add_argument("--tokenizer", metavar="FILE|DIR", help="default: one trained on the text")
    show.add_argument("--family", default="", help="of models (default: the first that carries it)")
    show.add_argument("--visibility", default="", help="of the model: full, causal or prefix (default: what it needs)")
    show.add_argument("--examples", type=int, default=2, metavar="N", help="default: 2")
    show.add_argument(
        "--length", type=int, metavar="L", help="tokens that a stack reads (default: 64, or the config's)"
    )
    show.add_argument("--seed", type=int, help="seed of the run (default: 0, or the config's)")
    show.add_argument("--json", action="store_true", help="print JSON, with every array")

    # Names alone: this imports no JAX.
    from jaxformer.flops import CHIPS

    plan = add(
        "plan", _plan, "say what a run will need: parameters, memory per device, hours, energy, CO2eq",
        "plan --config=gpt3:175b --devices=128 --chip=h100 --config.sharding.fsdp=16 --config.sharding.tensor=8",
        overrides=True,
    )  # fmt: skip
    plan.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    plan.add_argument("--devices", type=int, metavar="N", help="default: as many as config.sharding asks for")
    plan.add_argument("--chip", default="", metavar="NAME", help=f"the accelerator: {', '.join(CHIPS)}")
    plan.add_argument(
        "--utilisation", type=float, default=0.4, metavar="SHARE", help="of the chip's peak (MFU; default: 0.4)"
    )
    plan.add_argument("--watts", type=float, metavar="W", help="power of a chip (default: its data sheet's)")
    plan.add_argument("--json", action="store_true", help="print JSON, with everything")

    demo = add("demo", _demo, "show what pretraining is worth, on the built-in corpus", "demo --family=bert")
    demo.add_argument("--family", default="bert", choices=("bert", "gpt", "t5", "all"), help="default: bert")
    demo.add_argument("--output", default="runs/demo", metavar="DIR", help="where it all goes (default: runs/demo)")
    return parser


def default_workdir(spec: str) -> Path:
    """Return runs/NAME[-ARG] for a config NAME[:ARG] or FILE[:ARG]."""
    name, _, arg = Path(spec).name.partition(":")
    return Path("runs") / re.sub(r"[^\w.-]+", "-", "-".join(part for part in (name.removesuffix(".py"), arg) if part))


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import config as configs
    from jaxformer.progress import Display
    from jaxformer.runtime import is_first
    from jaxformer.train import train

    config = configs.load(args.config, overrides)
    workdir = Path(args.workdir) if args.workdir else default_workdir(args.config)
    with Display(quiet=args.quiet) as display:
        results = train(
            config, workdir, allow_config_change=args.allow_config_change, display=display, profile=args.profile
        )
        words = "  ".join(f"{name} {value:.4g}" for name, value in results.items())
        if is_first():
            display.note(f"done: {workdir}  {words}")
    return 0


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.run import evaluate_run

    metrics = evaluate_run(Path(args.workdir), args.split, overrides)
    if args.json:
        print(json.dumps(metrics))
    else:
        for name, value in metrics.items():
            print(f"{name:24} {value:.6g}")
    return 0


def _generate(args: argparse.Namespace, overrides: list[str]) -> int:
    import dataclasses

    from jaxformer.run import load

    run = load(args.workdir)
    given = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    generation = dataclasses.replace(run.config.generation, **{k: v for k, v in given.items() if v is not None})
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin]
    for prompt, answer in zip(prompts, run.generate(prompts, generation), strict=True):
        continues = run.config.model.family == "decoder_only"
        print(json.dumps({"prompt": prompt, "text": answer}) if args.json else prompt + answer if continues else answer)
    return 0


def _report(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import report

    runs = [report.read_run(Path(run)) for run in args.runs]
    if args.json:
        print(json.dumps(report.summary_rows(runs)))
        return 0
    page = report.write_report([Path(run) for run in args.runs], Path(args.output))
    report.print_summary(runs)
    print(f"report: {page}")
    return 0


def _import(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.interop import import_run

    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    count = import_run(args.source, Path(args.workdir), tokenizer, revision=args.revision)
    print(f"{args.workdir}: {count:,} parameters of {args.source}")
    return 0


def _export(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.interop import export_run

    name = export_run(Path(args.workdir), Path(args.out))
    print(f"{args.out}: {name}.from_pretrained loads it")
    return 0


def _tokenizer_train(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import config as configs
    from jaxformer.data.prepare import corpus_tokenizer
    from jaxformer.errors import disk_errors
    from jaxformer.progress import Display

    config = configs.load(args.config, overrides)
    with Display() as display:
        tokenizer = corpus_tokenizer(config.tokenizer, config.data, config.supervision, display.progress)
    with disk_errors(args.output):
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(Path(args.output))
    print(f"{args.output}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}")
    return 0


def _tokenizer(where: str) -> Any:
    from jaxformer.tokenizers import load_tokenizer

    return load_tokenizer(Path(where))


def _tokenizer_encode(args: argparse.Namespace, overrides: list[str]) -> int:
    tokenizer = _tokenizer(args.tokenizer)
    for text in args.texts:
        ids = tokenizer.encode(text).tolist()
        print(json.dumps({"ids": ids, "tokens": tokenizer.tokens(ids)}) if args.json else " ".join(map(str, ids)))
    return 0


def _tokenizer_decode(args: argparse.Namespace, overrides: list[str]) -> int:
    tokenizer = _tokenizer(args.tokenizer)
    outside = [number for number in args.ids if not 0 <= number < tokenizer.vocab_size]
    if outside:
        raise UserError(f"id {outside[0]}: the tokenizer has ids 0 to {tokenizer.vocab_size - 1}")
    text = tokenizer.decode(args.ids, skip_special=False)
    print(json.dumps({"text": text}) if args.json else text)
    return 0


def _tokenizer_show(args: argparse.Namespace, overrides: list[str]) -> int:
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


def _models(args: argparse.Namespace, overrides: list[str]) -> int:
    # Counting computes nothing: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer import catalog

    picture = None if args.plot is None else Path(args.plot)
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


def _objectives(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer import compatibility

    if args.json:
        print(json.dumps(compatibility.entries()))
    else:
        compatibility.print_table()
    return 0


def _objectives_show(args: argparse.Namespace, overrides: list[str]) -> int:
    # Nothing is computed: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer import showing
    from jaxformer.examples import draw_examples

    shown = draw_examples(
        Path(args.text), args.name, config=args.config, tokenizer=Path(args.tokenizer) if args.tokenizer else None,
        family=args.family, visibility=args.visibility, count=args.examples, length=args.length, seed=args.seed,
        overrides=overrides,
    )  # fmt: skip
    if args.json:
        print(json.dumps(showing.as_json(shown)))
    else:
        showing.print_examples(shown)
    return 0


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    # Nothing is computed: an accelerator would take seconds to start, or be somebody else's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxformer import config as configs
    from jaxformer import plan

    config = configs.load(args.config, overrides)
    made = plan.make_plan(
        config, num_devices=args.devices, chip=args.chip, utilisation=args.utilisation, watts=args.watts
    )
    if args.json:
        print(json.dumps(made))
    else:
        plan.print_plan(made)
    return 0


def _demo(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.demo import demo

    demo(args.family, Path(args.output))
    return 0

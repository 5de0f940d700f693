"""The train loop: open the run, prepare data, build, restore or initialise, then step, log, evaluate and save.

Precedence: resume the run's own workdir, else start from `init_from`, else start fresh.
"""

import contextlib
import signal
import time
from pathlib import Path

import jax

from jaxformer.build import (
    bind,
    build_model,
    choose_tokenizer,
    compiled_steps,
    held_out_batches,
    held_out_members,
    label_names,
    timeless,
)
from jaxformer.checkpoint import Checkpoints
from jaxformer.config import Config
from jaxformer.data.batches import train_batches
from jaxformer.data.prepare import prepare
from jaxformer.errors import Interrupted, disk_errors
from jaxformer.evaluation import combined, evaluate
from jaxformer.footprint import Footprint
from jaxformer.models.model import count_parameters
from jaxformer.monitor import Meter, Signals
from jaxformer.optimizers import schedule
from jaxformer.progress import Display
from jaxformer.run import MetricsLog, check_resumable, is_run, write_record
from jaxformer.runtime import prepare_process
from jaxformer.sharding import make_mesh, place, replicated
from jaxformer.start import fitting_teacher, open_teacher, start_state
from jaxformer.step import losses_of


def train(
    config: Config, workdir: Path, *, allow_config_change: bool = False, display: Display | None = None
) -> dict[str, float]:
    """Train to `training.num_steps` and return the last held-out metrics ("eval/…") and the last "train/loss".

    Raises UserError for what the user can fix and Interrupted after saving on SIGTERM or Ctrl-C.
    """
    resumes = is_run(workdir)
    if resumes:
        check_resumable(workdir, config, allow_config_change)
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    prepare_process()
    display = display or Display(quiet=True)
    with contextlib.ExitStack() as cleanup:
        return _train(config, workdir, resumes, display, cleanup)


def _train(
    config: Config, workdir: Path, resumes: bool, display: Display, cleanup: contextlib.ExitStack
) -> dict[str, float]:
    began = time.perf_counter()
    tokenizer = choose_tokenizer(config, workdir, resumes, display)
    teacher_run = fitting_teacher(config, tokenizer)  # a teacher that does not fit is refused before data is prepared
    labels = label_names(config)
    supervision = bind(config, tokenizer, labels)
    members = prepare(config.data, supervision, tokenizer, "train", seed=config.seed, progress=display.progress)
    held_out = held_out_members(config, supervision, tokenizer, display)
    # Measured from here, charged from the beginning: TFDS, while it loads itself, patches the import of all threads.
    footprint = Footprint(workdir, config.footprint, jax.process_index(), began)
    cleanup.callback(footprint.stop)

    training = config.training
    model = build_model(config, supervision)
    mesh = make_mesh(
        config.sharding,
        {
            "training.batch_size / training.accumulation_steps": training.batch_size // training.accumulation_steps,
            "evaluation.batch_size": config.evaluation.batch_size or training.batch_size,
        },
    )

    rng = jax.random.key(config.seed)
    init_rng, dropout_rng = jax.random.split(rng)
    teacher = open_teacher(config, teacher_run, replicated(mesh))
    make_state, train_step, eval_step = compiled_steps(
        model, losses_of(supervision), timeless(config.optimizer), training.trainable, training.accumulation_steps,
        mesh, teacher and teacher.teaching,
    )  # fmt: skip
    learning_rate = schedule(config.optimizer, training.num_steps)
    num_parameters = count_parameters(model)
    devices = f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}"
    display.note(f"{config.name}: {num_parameters:,} parameters on {devices}")

    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    everywhere = replicated(mesh)
    new_tokens = getattr(supervision, "new_token_ids", ())
    state = start_state(
        config, workdir, resumes, checkpoints, make_state, init_rng, everywhere, display, new_tokens, labels, teacher
    )
    if not resumes:  # only now: what failed until here has left no run that a corrected command would have to resume
        tokenizer.save(workdir / "tokenizer.json")
        write_record(workdir, config, labels, num_parameters)
    start = int(state.step)
    log = MetricsLog(workdir, start)
    batches = train_batches(
        members,
        seed=config.seed,
        batch_size=training.batch_size,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    meter = Meter(config, model, supervision, start, log, display, learning_rate, teacher and teacher.teaching.model)
    taught = () if teacher is None else (teacher.params,)
    results: dict[str, float] = {}

    def judge() -> dict[str, float]:
        parts = []
        for member in held_out:
            found = evaluate(
                model, supervision, eval_step, state.params, held_out_batches(config, member),
                place=lambda batch: place(mesh, batch), tokenizer=tokenizer, labels=labels,
            )  # fmt: skip
            parts.append((member.name, member.weight, found))
        metrics = combined(parts) if parts else {}
        return {f"eval/{name}": value for name, value in metrics.items()}

    with Signals() as signals:
        try:
            pending: dict[str, jax.Array] | None = None
            for step in range(start + 1, training.num_steps + 1):
                batch = place(mesh, next(batches))
                state, metrics = train_step(state, batch, dropout_rng, learning_rate(step - 1), *taught)
                if pending is not None:  # the device is already at the next step while this one's numbers are read
                    meter.read(step - 1, pending)
                pending = metrics
                last = step == training.num_steps
                evaluates = last or (training.eval_every and step % training.eval_every == 0)
                saves = last or signals.received or (config.checkpoint.every and step % config.checkpoint.every == 0)
                if not (evaluates or saves):
                    continue
                # A state is judged or saved only once its own loss is known to be finite.
                meter.read(step, pending, always=True)
                pending = None
                if evaluates and not signals.received:
                    with meter.paused():
                        results = judge()
                    if results:
                        log.write(step, results)
                        words = "  ".join(f"{name} {value:.4g}" for name, value in results.items())
                        display.note(f"step {step}: {words}")
                if saves:
                    with meter.paused():
                        checkpoints.save(step, state, results)
                        footprint.flush()
                if signals.received:
                    checkpoints.wait()
                    name = signal.Signals(signals.received).name
                    what = f"stopped by {name} and saved {workdir} at step {step}; run the same command to go on"
                    raise Interrupted(what, code=130 if signals.received == signal.SIGINT else 75)
            checkpoints.wait()
        finally:
            batches.close()
            log.close()
            checkpoints.close()
    return {"train/loss": meter.loss, **(results or judge())}

"""The train loop: open the run, prepare data, build, restore or initialise, then step, log, evaluate and save.

Precedence: resume the run's own workdir, else start from `init_from`, else start fresh.
"""

import contextlib
import datetime
import signal
import time
from pathlib import Path
from typing import Any

import jax

from jaxformer.build import (
    bind,
    build_model,
    choose_tokenizer,
    compiled_steps,
    held_out_batches,
    held_out_members,
    label_names,
    mesh_of,
    run_mesh,
    timeless,
    training_batches,
    training_members,
)
from jaxformer.checkpoint import Checkpoints
from jaxformer.config import Config
from jaxformer.errors import Interrupted
from jaxformer.evaluation import combined, evaluate
from jaxformer.footprint import Footprint
from jaxformer.models.model import count_parameters
from jaxformer.monitor import Meter, Profiler, Signals, Watchdog, step_flops
from jaxformer.optimizers import schedule
from jaxformer.phases import Phase
from jaxformer.processes import agreed, check_same, connect, first_alone, is_first, meet
from jaxformer.progress import Display
from jaxformer.run import MetricsLog, check_resumable, is_run, write_record
from jaxformer.runtime import prepare_process
from jaxformer.sharding import place
from jaxformer.staging import Staging, staged
from jaxformer.start import fitting_teacher, open_teacher, start_state
from jaxformer.step import losses_of
from jaxformer.storage import store_errors


@store_errors()
def train(
    config: Config, workdir: Path, *, allow_config_change: bool = False, display: Display | None = None,
    profile: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Train to `training.num_steps` and return the last held-out metrics ("eval/…") and the last "train/loss".

    With `profile` a trace of a few steps is written into the run directory. Raises UserError for what the user can fix
    and Interrupted after saving on SIGTERM or Ctrl-C.
    """
    started = datetime.datetime.now(datetime.UTC)
    resumes = is_run(workdir)
    if resumes:
        check_resumable(workdir, config, allow_config_change)
    prepare_process()
    with contextlib.ExitStack() as cleanup:
        signals = cleanup.enter_context(Signals())  # before JAX has its own for SIGTERM
        staging = cleanup.enter_context(staged(workdir))
        connect()
        resumes = bool(agreed(resumes))
        if display is None or not is_first():
            display = Display(quiet=True)
        return _train(config, staging, resumes, started, display, profile, signals, cleanup)


def _train(
    config: Config, staging: Staging, resumes: bool, started: datetime.datetime, display: Display, profile: bool,
    signals: Signals, cleanup: contextlib.ExitStack,
) -> dict[str, float]:  # fmt: skip
    began, first = time.perf_counter(), is_first()
    workdir, folder = staging.run, staging.folder
    mesh = run_mesh(config)
    tokenizer = first_alone(lambda: choose_tokenizer(config, folder, resumes, display))
    teacher_run = fitting_teacher(config, tokenizer)  # a teacher that does not fit is refused before data is prepared
    labels = label_names(config)
    supervision = bind(config, tokenizer, labels)
    members = first_alone(lambda: training_members(config, tokenizer, labels, display))
    held_out = first_alone(lambda: held_out_members(config, supervision, tokenizer, display))
    check_same("the tokenizer", tokenizer.fingerprint)
    check_same("the data", str([[len(member.rows) for member in drawn] for drawn in (*members, held_out)]))
    # Measured from here, charged from the beginning: TFDS, while it loads itself, patches the import of all threads.
    footprint = Footprint(folder, config.footprint, jax.process_index(), began, run=workdir)
    cleanup.callback(footprint.stop)

    training = config.training
    model = build_model(config, supervision, mesh_of(config, mesh))
    init_rng, dropout_rng = jax.random.split(jax.random.key(config.seed))
    teacher = open_teacher(config, teacher_run, mesh)

    def steps_of(phase: Phase) -> Any:
        return compiled_steps(
            model, losses_of(supervision), timeless(config.optimizer), training.trainable, phase.accumulation_steps,
            mesh, config.sharding.strategy, training.skip_non_finite > 0, teacher and teacher.teaching,
        )  # fmt: skip

    steps = steps_of(config.phases[-1])
    learning_rate = schedule(config.optimizer, training.num_steps)
    num_parameters = count_parameters(model)
    devices = f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}"
    display.note(f"{config.name}: {num_parameters:,} parameters on {devices}")

    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, before_finishing=staging.sync)
    new_tokens = getattr(supervision, "new_token_ids", ())
    state = start_state(config, workdir, resumes, checkpoints, steps, init_rng, display, new_tokens, labels, teacher)
    if not resumes and first:  # only now: what failed until here has left no run that a corrected command must resume
        tokenizer.save(folder / "tokenizer.json")
        write_record(folder, config, labels, num_parameters, started)
    start = int(state.step)
    staging.sync()  # config.json is there before the first checkpoint
    log = MetricsLog(folder, start, writes=first)
    batches = training_batches(config, members, mesh, start)
    flops = step_flops(config, model, supervision, teacher and teacher.teaching.model)
    meter = Meter(config, start, log, display, learning_rate, flops, mesh.size)
    watchdog = Watchdog(training.stuck_seconds, folder, display if first else Display())
    profiler = Profiler(folder / "profile" if profile and first else None, start, display, workdir)
    taught = () if teacher is None else (teacher.params,)
    results: dict[str, float] = {}
    finished = False

    def judge(step: int) -> dict[str, float]:
        parts = []
        for member in held_out:
            found = evaluate(
                model, supervision, steps.eval_step, state.params, held_out_batches(config, member, mesh),
                place=lambda batch: place(mesh, batch), tokenizer=tokenizer, labels=labels,
            )  # fmt: skip
            parts.append((member.name, member.weight, found))
        metrics = combined(parts) if parts else {}
        found = {f"eval/{name}": value for name, value in metrics.items()}
        if found and not log.judged(step):
            log.write(step, found)
            words = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
            display.note(f"step {step}: {words}")
        return found

    def is_judged(step: int) -> bool:
        every = training.eval_every
        return step == training.num_steps or (every > 0 and step > 0 and step % every == 0)

    signals.steps = True
    try:
        # A finished run is judged again for whoever asks; else a stop may have left no time for it.
        if is_judged(start) and (start == training.num_steps or not agreed(log.judged(start))):
            with meter.paused():
                results = judge(start)
        pending: dict[str, jax.Array] | None = None
        phase = None
        for step in range(start + 1, training.num_steps + 1):
            watchdog.watch(step)
            profiler.before(step)
            with meter.waiting_for_data():
                drawn, batch = next(batches)
            compiles = drawn is not phase  # the first call of a phase, which returns when that is done
            if compiles:
                phase, train_step = drawn, steps_of(drawn).train_step
            with meter.paused() if compiles else contextlib.nullcontext():
                state, metrics = train_step(state, place(mesh, batch), dropout_rng, learning_rate(step - 1), *taught)
            if pending is not None:  # the device is already at the next step while this one's numbers are read
                meter.read(step - 1, pending)
            pending = metrics
            profiler.after(step, state)
            last, stop = step == training.num_steps, signals.after(step)
            evaluates = is_judged(step) and not stop
            saves = last or stop or (config.checkpoint.every and step % config.checkpoint.every == 0)
            if not (evaluates or saves):
                continue
            # A state is judged or saved only once its own loss is known to be finite.
            meter.read(step, pending, always=True)
            pending = None
            if evaluates:
                with meter.paused():
                    results = judge(step)
            if saves and (last or stop or not meter.in_a_row):  # the row goes on counting where a run resumes
                with meter.saving():
                    checkpoints.save(step, state, results if evaluates else {})
                    footprint.flush()
            if stop:
                checkpoints.wait()
                meet()  # process 0 may still be hashing; on the way out JAX waits for it for some minutes only
                name = signal.Signals(stop).name
                what = f"stopped by {name} and saved {workdir} at step {step}; run the same command to go on"
                raise Interrupted(what, code=130 if stop == signal.SIGINT else 75)
        checkpoints.wait()
        meet()
        finished = True
    finally:
        for part in (batches, log, watchdog, profiler):
            part.close()
        if finished or jax.process_count() == 1:  # peers may be gone, and would be waited for
            checkpoints.close()
    return {"train/loss": meter.loss, **results}

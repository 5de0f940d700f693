"""Distillation: the losses by numpy, what the teacher is and is not, where a student begins, whole runs, refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import CASES, make_run, params_of, tokenizer_of
from sampling import sampled
from tiny import CONFIGS, SIZES, batch_of, model_of, supervision_of

from jaxformer import config as configs
from jaxformer.cli.main import main
from jaxformer.devices.sharding import ShardingConfig, make_mesh, replicated
from jaxformer.errors import UserError
from jaxformer.models.model import Model
from jaxformer.runs.loading import bind, build_model
from jaxformer.runs.teacher import begin_with_layers, fitting_teacher, open_teacher
from jaxformer.storage import read_metrics
from jaxformer.training.distillation import DistillationConfig, cosine_loss, soft_loss
from jaxformer.training.step import Teaching, TrainState, make_eval_step, make_train_step
from jaxformer.trees import flatten

DAILY = (("bert", "predicted"), ("t5", "all"))
MORE = (("gpt3", "all"), ("gpt3", "predicted"), ("t5", "predicted"))


def teaching_of(name: str, **values: Any) -> Teaching:
    """A teacher of three layers; students have as many unless they say otherwise."""
    return Teaching(DistillationConfig(teacher="t", **values), Model(CONFIGS[name]))


def student_of(name: str) -> Model:
    model = model_of(name)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, num_layers=1))


def random_params(model: Model, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), model.shapes)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_soft_loss_by_hand() -> None:
    student, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    one = soft_loss(jnp.array(student), jnp.array(teacher), jnp.ones(1), 1.0)
    assert float(one) == pytest.approx(0.25 * np.log(0.5) + 0.5 * np.log(2.0), rel=1e-5)
    soft = [np.sqrt(p) / np.sqrt(p).sum() for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25])]
    expected = 4 * (soft[1] * np.log(soft[1] / soft[0])).sum()
    assert float(soft_loss(jnp.array(student), jnp.array(teacher), jnp.ones(1), 2.0)) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(soft_loss(jnp.array(student), jnp.array(teacher), jnp.zeros(1), 2.0)) == 0


def test_cosine_loss_by_hand() -> None:
    student, teacher = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), jnp.array([[6.0, 8.0], [0.0, 2.0], [1.0, 1.0]])
    assert float(cosine_loss(student, teacher, jnp.array([1.0, 1.0, 0.0]))) == pytest.approx(1.0, abs=1e-6)
    gradient = jax.grad(lambda hidden: cosine_loss(hidden, teacher, jnp.ones(3)))(student)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "positions"),
    sampled((*DAILY, *MORE), path=lambda name, positions: positions, daily=DAILY),
)
def test_the_loss_is_the_sum_that_numpy_finds(name: str, positions: str) -> None:
    student, supervision, batch = student_of(name), supervision_of(name), batch_of(name)
    teaching = teaching_of(name, positions=positions, temperature=3.0)
    params, teacher_params = random_params(student, 1), random_params(teaching.model, 2)
    optimizer = optax.sgd(0.0)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    step = jax.jit(make_train_step(student, supervision, optimizer, 1, teaching))
    _, metrics = step(state, batch, jax.random.key(0), 0.0, teacher_params)
    plain = make_eval_step(student, supervision)
    read = {key: value for key, value in batch.items() if key != "predict_positions" or positions == "predicted"}
    mask = np.asarray(batch["weights"] if positions == "predicted" else batch["segment_ids"]) > 0

    @jax.jit
    def run(params: Any, teacher_params: Any) -> Any:
        models = ((student, params), (teaching.model, teacher_params))
        hidden = [model.apply(params, read)["hidden"] for model, params in models]
        return hidden, [m.project(p, h) for (m, p), h in zip(models, hidden, strict=True)], plain(params, batch)[0]

    hidden, logits, sums = run(params, teacher_params)
    logits = [np.asarray(values, np.float64)[..., : SIZES["vocab_size"]] for values in logits]
    log_q, log_p = (log_softmax(values / 3.0) for values in logits)
    soft = 9.0 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)[mask].mean()
    s, t = (np.asarray(values, np.float64)[mask] for values in hidden)
    cosine = (1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)).mean()
    assert float(metrics["soft_loss"]) == pytest.approx(soft, rel=1e-4)
    assert float(metrics["cosine_loss"]) == pytest.approx(cosine, rel=1e-4)
    hard = sum(float(loss / count) for loss, _, count in sums.values())  # coefficients are 1
    assert float(metrics["loss"]) == pytest.approx(5 * soft + 2 * hard + cosine, rel=1e-4)


@pytest.mark.parametrize("name", sampled(["bert", "gpt3", "t5"], path=lambda name: "the step"))
def test_micro_batches_make_the_same_step(name: str) -> None:
    student, supervision, batch = student_of(name), supervision_of(name), batch_of(name, rows=8)
    teaching, optimizer = teaching_of(name), optax.sgd(0.1)
    teacher_params = random_params(teaching.model, 2)
    params = random_params(student, 1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    steps = [jax.jit(make_train_step(student, supervision, optimizer, pieces, teaching)) for pieces in (1, 4)]
    (whole, metrics), (pieces, same) = (step(state, batch, jax.random.key(1), 0.1, teacher_params) for step in steps)
    for key in metrics:
        assert float(same[key]) == pytest.approx(float(metrics[key]), rel=1e-5), key
    for path, leaf in flatten(whole.params).items():
        np.testing.assert_allclose(leaf, flatten(pieces.params)[path], rtol=0, atol=1e-6, err_msg=path)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    model, supervision, batch = student_of("bert"), supervision_of("bert"), batch_of("bert")
    teaching = teaching_of("bert", hard_weight=0.0)._replace(model=Model(model.config))
    params = random_params(model, 1)
    own = {key: value for key, value in params.items() if key != "row_heads"}
    state = TrainState(jnp.int32(0), params, optax.sgd(1.0).init(params))
    _, metrics = jax.jit(make_train_step(model, supervision, optax.sgd(1.0), 1, teaching))(
        state, batch, jax.random.key(0), 1.0, own
    )
    assert float(metrics["soft_loss"]) == pytest.approx(0, abs=1e-5)
    assert float(metrics["cosine_loss"]) == pytest.approx(0, abs=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(0, abs=1e-2)


def test_what_has_no_weight_is_not_computed() -> None:
    student, batch = student_of("gpt3"), batch_of("gpt3")
    params = random_params(student, 1)
    state = TrainState(jnp.int32(0), params, optax.sgd(0.1).init(params))
    for without in ("soft", "cosine"):
        teaching = teaching_of("gpt3", **{f"{without}_weight": 0.0})
        step = make_train_step(student, supervision_of("gpt3"), optax.sgd(0.1), 1, teaching)
        metrics = jax.eval_shape(step, state, batch, jax.random.key(0), 0.1, teaching.model.shapes)[1]
        assert f"{without}_loss" not in metrics and len({"soft_loss", "cosine_loss"} & set(metrics)) == 1


# Whole runs.

TEXT = "\n\n".join(
    f"Open the {thing} and read every line of it. Return the number of {thing} items, one at a time."
    for thing in ("file", "queue", "lock", "thread", "text", "socket", "path", "table") * 6
)
STUDENTS = {
    "bert_masked": ["checkpoint.init_skip=encoder/inputs/token_types"],
    "bert": ["checkpoint.init_skip=encoder/inputs/token_types,row_heads/.*", "objective.next_sentence=false"],
    "gpt2": [],
    "t5": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    for name in (*STUDENTS, "bert_label"):
        make_run(name, folder / name)
    (folder / "text.txt").write_text(TEXT)
    return folder


def student_config(teachers: Path, name: str, *overrides: str) -> configs.Config:
    """The teacher's own config, made a student's of two layers of three."""
    stored = json.loads((teachers / name / "config.json").read_text())["config"]
    keys = [
        f"distillation.teacher={teachers / name}", "distillation.layers=0,2", "model.num_layers=2",
        "training.num_steps=4",
        "data.name=text", f"data.path={teachers / 'text.txt'}", f"tokenizer.path={teachers / name / 'tokenizer.json'}",
        "training.log_every=1", "evaluation.max_examples=8", "checkpoint.every=2", *STUDENTS.get(name, []), *overrides,
    ]  # fmt: skip
    if name.startswith("bert_") or name == "bert":
        stored["model"] |= {"token_types": 0, "pooler": "relu"}  # DistilBERT's
    return configs.resolve(stored, keys, name=f"{name} student")


def run(config: configs.Config, workdir: Path) -> dict[str, float]:
    from jaxformer.runs.loop import train

    return train(config, workdir)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_begins_with_layers_of_its_teacher(name: str, teachers: Path) -> None:
    config = student_config(teachers, name)
    words = tokenizer_of(CASES[name][1])
    student, mesh = build_model(config, bind(config, words, ())), make_mesh(ShardingConfig())
    everywhere = replicated(mesh)
    teacher = open_teacher(config, fitting_teacher(config, words), mesh)
    assert teacher is not None
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=everywhere), student.shapes)
    own, table = begin_with_layers(config, teacher, fresh)
    theirs = params_of(teachers / name)
    assert set(flatten(own)) == set(flatten(student.shapes)) <= set(theirs) and not table.new
    for path, array in flatten(own).items():
        chosen = theirs[path][[0, 2]] if "/layers/" in path else theirs[path]
        np.testing.assert_array_equal(array, chosen, err_msg=path)


@pytest.mark.parametrize("name", sampled(["bert", "t5"], path=lambda name: "learns and resumes"))
def test_a_distillation_learns_resumes_and_leaves_its_teacher_alone(name: str, teachers: Path, tmp_path: Path) -> None:
    before = params_of(teachers / name)
    learns = ("optimizer.learning_rate=0.01", "optimizer.schedule=constant", "training.num_steps=12",
              "checkpoint.every=6", "distillation.layers=()")  # fmt: skip
    config = student_config(teachers, name, *learns)
    run(config, tmp_path / "unbroken")
    losses = [line["train/soft_loss"] for line in read_metrics(tmp_path / "unbroken") if "train/soft_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    run(dataclasses.replace(config, training=dataclasses.replace(config.training, num_steps=6)), tmp_path / "broken")
    run(config, tmp_path / "broken")
    for path, array in params_of(tmp_path / "unbroken").items():
        np.testing.assert_array_equal(array, params_of(tmp_path / "broken")[path], err_msg=path)
    for path, array in params_of(teachers / name).items():
        np.testing.assert_array_equal(array, before[path])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpt2", ("distillation.layers=0,3",), "no layer 3 among the teacher's 3"),
        ("gpt2", ("distillation.layers=0,1,2",), "3 layers for a student of 2"),
        ("gpt2", ("model.d_model=24",), "hidden states of 16 numbers, the student of 24"),
        ("gpt2", ("distillation.teacher=nowhere",), "distillation.teacher: nowhere is not a run"),
        ("gpt2", ("distillation.teacher={bert}",), "tokenizer is not that of"),
        ("gpt2", ("model.vocab_size=900",), "another vocabulary"),
        ("bert", ("checkpoint.init_skip=",), "checkpoint.init_skip"),
        ("bert_label", (), "taught on an objective, not on a task"),
        ("gpt2", ("init_from={gpt2}",), "leave one out"),
        ("gpt2", ("distillation.layers=2,0",), "in rising order"),
        ("gpt2", ("distillation.temperature=0",), "distillation.temperature"),
        ("gpt2", ("distillation.positions=al",), "did you mean 'all'"),
        ("gpt2", ("distillation.soft_weight=0", "distillation.cosine_weight=0"), "teaches nothing"),
        ("gpt2", ("distillation.teacher=",), "give the run directory"),
        ("gpt2", ("distillation.layer=1",), "distillation.layer: no such key; did you mean 'layers'"),
    ],
)
def test_what_cannot_be_taught_is_refused(
    name: str, overrides: tuple[str, ...], message: str, teachers: Path, tmp_path: Path
) -> None:
    folders = {folder: teachers / folder for folder in ("bert", "gpt2")}
    with pytest.raises(UserError, match=message) as caught:
        run(student_config(teachers, name, *(override.format(**folders) for override in overrides)), tmp_path / "run")
    assert "\n" not in str(caught.value) or message == "checkpoint.init_skip"  # which shows two columns
    assert not (tmp_path / "run" / "config.json").exists()


def test_families_must_agree(teachers: Path) -> None:
    config = student_config(teachers, "bert_masked")
    other = dataclasses.replace(
        config, model=dataclasses.replace(config.model, family="decoder_only", visibility="causal")
    )
    with pytest.raises(UserError, match="is encoder_only, the student decoder_only"):
        fitting_teacher(other, tokenizer_of("wordpiece"))


@pytest.mark.slow
def test_the_command_line_distils(teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8, "num_layers": 1, "max_length": 64}
    keys = [f"model.{key}={value}" for key, value in sizes.items()]
    keys += [f"model.vocab_size={tokenizer_of('bpe').vocab_size}", "objective.sequence_length=32"]
    keys += ["data.name=text", f"data.path={teachers / 'text.txt'}", "training.num_steps=3", "optimizer.warmup_steps=0"]
    keys += [f"distillation.teacher={teachers / 'gpt2'}", "distillation.layers=1", "evaluation.max_examples=8"]
    words = [f"--config.{key}" for key in keys]
    preset = "--config.model.preset=gpt2_124m"
    assert main(["train", "--config=gpt:smoke", f"--workdir={tmp_path / 'run'}", preset, *words]) == 0
    assert read_metrics(tmp_path / "run")[-1]["step"] == 3
    capsys.readouterr()

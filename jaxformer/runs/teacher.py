"""Who teaches a student: another run, whose model is read and never trained."""

from typing import NamedTuple

from jax.sharding import Mesh

from jaxformer.checkpoint import RestoreTable, checkpoint_of, restore_params, stored_shapes
from jaxformer.config import Config
from jaxformer.devices import activations_mesh, param_shardings, placed
from jaxformer.errors import UserError
from jaxformer.models import Model, Params
from jaxformer.runs.loading import StoredRun, stored_run
from jaxformer.tokenizers import Tokenizer
from jaxformer.training import Teaching, execution


class Teacher(NamedTuple):
    """How a run is taught, and the parameters of what teaches it, heads of rows left out."""

    teaching: Teaching
    params: Params


def fitting_teacher(config: Config, tokenizer: Tokenizer, allow_change: bool = False) -> StoredRun | None:
    """Return the run that `config.distillation` names as teacher, its parameters unread; None without that section.
    `allow_change` is that of `stored_run`.

    Raises UserError for a folder that is no run, and for a teacher of which this student cannot learn.
    """
    if config.distillation is None:
        return None
    run = stored_run(config.distillation.teacher, allow_change)
    check_teacher(config, run, tokenizer)
    return run


def check_teacher(config: Config, run: StoredRun, tokenizer: Tokenizer | None = None) -> None:
    """Raise UserError for a teacher of which this student cannot learn: another family or vocabulary, a shorter table
    of positions, hidden states of another size to compare, layers that it does not have.

    Without the student's `tokenizer` the sizes of the vocabularies alone are compared.
    """
    distillation, student, theirs = config.distillation, config.model, run.config.model
    assert distillation is not None
    where = f"distillation.teacher: {distillation.teacher}"
    if theirs.family != student.family:
        raise UserError(f"{where} is {theirs.family}, the student {student.family}; both must read the same batch")
    own = run.tokenizer.fingerprint if tokenizer is None else tokenizer.fingerprint
    if own != run.tokenizer.fingerprint or theirs.vocab_size != student.vocab_size:
        raise UserError(
            f"{where} has another vocabulary ({theirs.vocab_size} ids, tokenizer {run.tokenizer.fingerprint}) than the "
            f"student ({student.vocab_size} ids, tokenizer {own}); a distribution cannot be compared"
        )
    if distillation.cosine_weight and theirs.d_model != student.d_model:
        raise UserError(
            f"{where} has hidden states of {theirs.d_model} numbers, the student of {student.d_model}; "
            "set distillation.cosine_weight=0 or model.d_model to the teacher's"
        )
    if theirs.position == "learned" and config.longest_row > theirs.max_length:
        raise UserError(f"{where} knows {theirs.max_length} positions, but rows are {config.longest_row} tokens long")
    if distillation.layers and len(distillation.layers) != student.num_layers:
        raise UserError(
            f"distillation.layers: {len(distillation.layers)} layers for a student of {student.num_layers}; "
            "give as many as model.num_layers"
        )
    if distillation.layers and distillation.layers[-1] >= theirs.num_layers:
        raise UserError(
            f"distillation.layers: there is no layer {distillation.layers[-1]} among the teacher's {theirs.num_layers}"
        )


def teacher_model(config: Config, run: StoredRun, mesh: Mesh | None = None) -> Model:
    """Return the model of a teacher as this run executes it, heads of rows left out."""
    return Model(run.config.model, execution(config.training, run.config.model, mesh, packed=config.packed))


def open_teacher(config: Config, run: StoredRun | None, mesh: Mesh) -> Teacher | None:
    """Return the teacher that `fitting_teacher` found, its parameters placed on the mesh."""
    if run is None or config.distillation is None:
        return None
    folder = checkpoint_of(config.distillation.teacher)
    model = teacher_model(config, run, activations_mesh(config.sharding, mesh))
    target = placed(model.shapes, param_shardings(mesh, model.shapes, model.config.head_dim))
    paths = stored_shapes(folder)
    skip = tuple(
        f"{heads}/.*" for heads in ("row_heads", "token_heads") if any(p.startswith(f"{heads}/") for p in paths)
    )
    return Teacher(Teaching(config.distillation, model), restore_params(folder, target, skip=skip)[0])


def begin_with_layers(config: Config, teacher: Teacher, fresh: Params) -> tuple[Params, RestoreTable]:
    """Return a student's parameters taken over from its teacher: the chosen layers, embeddings and all else that both
    have. What only one side has must be named, as for any restore: `checkpoint.init_skip`, `checkpoint.init_new`."""
    distillation, model = teacher.teaching
    dropped = set(range(model.config.num_layers)) - set(distillation.layers)
    skip = (*config.checkpoint.init_skip, *(rf".*/layers[{layer}]/.*" for layer in sorted(dropped)))
    folder, new = checkpoint_of(distillation.teacher), config.checkpoint.init_new
    return restore_params(folder, fresh, skip=skip, new=new, vocab_size=config.model.vocab_size)

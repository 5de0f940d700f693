"""Which point of a space comes next, and which runs are not worth going on with: what Optuna does for a sweep.

The points of a grid and those drawn at random are fixed by the space and the seed; TPE and CMA-ES make theirs of what
the points before gave. Every point is a trial of Optuna's, in the journal in the study's folder or in a database. A
worker that dies leaves its point as running there: whoever finds that its run is nobody's goes on with it.
"""

import contextlib
import importlib.util
import logging
import math
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import UserError, disk_errors
from jaxformer.storage import is_remote
from jaxformer.studies.space import Dimension, Point
from jaxformer.studies.study import Study, without_password

JOURNAL = "journal.log"
_POINT, _BY = "point", "by"
_REDUCTION = 3  # of so many runs one goes on, at each rung of successive halving and Hyperband


class Asked(NamedTuple):
    """A point that was asked for. `number` is Optuna's of its trial, `over` whether Optuna has been told its end."""

    number: int
    point: Point
    over: bool


class Search:
    """A study's search, as one process sees it. Raises UserError where its storage cannot be used."""

    def __init__(self, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        self.study, self._optuna = study, optuna
        self._fixed = study.fixed_points()
        with _storage_errors(study):
            directions = {"min": "minimize", "max": "maximize"}
            self._search = optuna.create_study(
                study_name=study.name,
                storage=_storage(study),
                directions=[directions[mode] for mode in study.settings.modes],
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),  # of what only reports and judges; `_sampler` chooses
                pruner=_pruner(study),
            )

    def asked(self) -> list[Asked]:
        """Return the points so far, in order. Of two workers that began the same one the first counts, and of points
        beyond the wanted number none."""
        running = self._optuna.trial.TrialState.RUNNING
        found: dict[Any, Asked] = {}
        with _storage_errors(self.study):
            trials = self._search.get_trials(deepcopy=False)
        for trial in trials:
            key = trial.user_attrs.get(_POINT, f"asked {trial.number}")
            point = self._point(trial.params) if self._fixed is None else self._fixed_point(key)
            if point is not None and key not in found:
                found[key] = Asked(trial.number, point, trial.state != running)
        most = self.study.settings.trials
        return list(found.values())[: most or len(found)]

    def ask(self) -> bool:
        """Begin another point; say whether there is one."""
        asked = self.asked()
        with _storage_errors(self.study):
            if self._fixed is not None:
                begun = {self._key(entry.number) for entry in asked}
                index = next((index for index in range(len(self._fixed)) if index not in begun), None)
                if index is not None:
                    self._search.add_trial(self._trial_of(index))
                return index is not None
            if len(asked) >= self.study.settings.trials:
                return False
            self._search.sampler = self._sampler(len(self._search.get_trials(deepcopy=False)))
            trial = self._search.ask()
            point: Point = {}
            for dimension in self.study.space.dimensions:
                if dimension.is_met_by(point):
                    value = trial._suggest(dimension.name, self._distribution(dimension))
                    point |= _values(dimension, value)
            return True

    def tell(self, asked: Asked, values: Sequence[float] | None, pruned: bool = False) -> None:
        """Tell Optuna what a point gave: None where it failed, or was `pruned`."""
        states = self._optuna.trial.TrialState
        finite = values is not None and all(map(math.isfinite, values))
        state = states.PRUNED if pruned else None if finite else states.FAIL
        with _storage_errors(self.study):
            self._search.tell(asked.number, values if state is None else None, state=state, skip_if_finished=True)

    def judge(self, asked: Asked, every: int) -> Callable[[int, float], bool]:
        """Return what takes (step, value) of an evaluation and says whether the pruner ends the run there; there is one
        `every` so many steps."""
        with _storage_errors(self.study):
            frozen = self._search.get_trials(deepcopy=False)[asked.number]
            trial = self._optuna.trial.Trial(self._search, frozen._trial_id)

        def judge(step: int, value: float) -> bool:
            with _storage_errors(self.study):
                if (rung := step // every) not in frozen.intermediate_values:  # else told before it was stopped
                    trial.report(value, rung)
                return trial.should_prune()

        return judge

    def _key(self, number: int) -> Any:
        return self._search.get_trials(deepcopy=False)[number].user_attrs[_POINT]

    def _fixed_point(self, index: Any) -> Point | None:
        assert self._fixed is not None
        return self._fixed[index] if isinstance(index, int) and index < len(self._fixed) else None

    def _trial_of(self, index: int) -> Any:
        assert self._fixed is not None
        point = self._fixed[index]
        dimensions = [each for each in self.study.space.dimensions if each.keys[0] in point]
        return self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING,
            params={each.name: _label(tuple(point[key] for key in each.keys)) for each in dimensions},
            distributions={each.name: self._distribution(each) for each in dimensions},
            user_attrs={_POINT: index, _BY: uuid.uuid4().hex},
        )

    def _point(self, params: Mapping[str, Any]) -> Point | None:
        """Return the point of a trial's parameters; None while it is being asked, or where that was broken off."""
        point: Point = {}
        for dimension in self.study.space.dimensions:
            if dimension.is_met_by(point):
                if dimension.name not in params:
                    return None
                point |= _values(dimension, params[dimension.name])
        return point

    def _distribution(self, dimension: Dimension) -> Any:
        distributions = self._optuna.distributions
        if not dimension.is_range:
            return distributions.CategoricalDistribution([_label(value) for value in dimension.values])
        kind = distributions.IntDistribution if dimension.integer else distributions.FloatDistribution
        number = int if dimension.integer else float
        step = {"step": number(dimension.step)} if dimension.step else {}
        return kind(number(dimension.low), number(dimension.high), log=dimension.log, **step)

    def _sampler(self, number: int) -> Any:
        """Return what chooses trial `number`. Its random numbers follow from that alone, so that a search that was
        broken off goes on as an unbroken one does."""
        seed = int(np.random.SeedSequence([self.study.settings.search_seed, number]).generate_state(1)[0])
        samplers = {"tpe": self._optuna.samplers.TPESampler, "cma_es": self._optuna.samplers.CmaEsSampler}
        return samplers[self.study.settings.sampler](seed=seed)


def _values(dimension: Dimension, value: Any) -> Point:
    """Return the values of a dimension's keys for Optuna's value of it."""
    if dimension.is_range:
        return {dimension.keys[0]: value}
    return dict(zip(dimension.keys, next(each for each in dimension.values if _label(each) == value), strict=True))


def _label(value: tuple[Any, ...]) -> Any:
    """Return a value as Optuna keeps it: a number or a text."""
    plain = len(value) == 1 and isinstance(value[0], (int, float, str, bool, type(None)))
    return value[0] if plain else repr(value[0] if len(value) == 1 else value)


def check_search(study: Study) -> None:
    """Raise UserError for what a study's search lacks here: a package, or a storage that its folder can have."""
    if study.settings.sampler == "cma_es" and importlib.util.find_spec("cmaes") is None:
        raise UserError("--sampler=cma_es: it needs the package cmaes: pip install 'jaxformer[cmaes]'")
    if is_remote(study.folder) and not study.storage:
        raise UserError(
            f"--study: {study.folder} is on an object store, which cannot hold the journal that workers share; "
            "give the URL of a database, as --storage=postgresql+psycopg://USER@HOST/DATABASE"
        )


def _storage(study: Study) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if study.storage:
        return RDBStorage(study.storage, engine_kwargs={"pool_pre_ping": True})
    return JournalStorage(JournalFileBackend(str(study.folder / JOURNAL)))


def _pruner(study: Study) -> Any:
    from optuna import pruners

    training = study.experiment.config().training
    last = max(training.num_steps // training.eval_every, 1) if training.eval_every else 1
    make: dict[str, Callable[[], Any]] = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION),
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=last, reduction_factor=_REDUCTION),
    }
    return make[study.settings.pruner]()


@contextlib.contextmanager
def _storage_errors(study: Study) -> Iterator[None]:
    """Turn what a database or the journal answers, when it cannot be used, into a UserError."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    where = without_password(study.storage)
    try:
        with disk_errors(study.folder):
            yield
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise UserError(f"--storage: {where} is no URL of a database ({_line(error)})") from error
    except (ImportError, ModuleNotFoundError) as error:
        if not study.storage:
            raise
        raise UserError(f"--storage: {where} needs a package that is not installed ({_line(error)})") from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"--storage: the database {where} cannot be reached ({_line(error)})") from error
    except ValueError as error:
        if "log format" not in str(error) and type(error).__name__ != "JSONDecodeError":
            raise
        path = study.folder / JOURNAL
        said = f"{path} is damaged ({error}); delete it: what finished runs gave is in their folders"
        raise UserError(said) from error


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)


logging.getLogger("alembic").setLevel(logging.WARNING)

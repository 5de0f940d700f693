"""The life of a run, above the config.

What lives here: a run opened for training (`opened`), what it reads (`data`), what learns (`learner`, `teacher`), where
it starts (`start`), the story of its steps (`loop`), watched by `instruments` (`log`, `monitor`), when
it ends early (`patience`); what of it stays on disk (`record`, `staging`), what it has read (`fingerprints`, `paths`)
and what makes it the same as another (`identity`);
and how it is used afterwards (`loading`, `judging`): for answers (`predicting`), texts (`generating`, `streaming`),
vectors (`embedding`) and scores (`scoring`, `documents`) of what is new (`given`), in files of any length (`answering`,
`score_rows`, `answer_rows`, `answer_file`, `shapes`).
What may come in: another verb that needs what a run consists of.
What must not: how a step computes (training), what batches hold (data), how results are drawn (report)."""

from jaxformer.runs.data import label_names
from jaxformer.runs.fingerprints import contents
from jaxformer.runs.identity import LEFT_OUT, identity_of
from jaxformer.runs.judging import evaluate_run
from jaxformer.runs.loading import StoredRun, bind, build_model, load, load_spread, stored_run
from jaxformer.runs.lock import Lost, claimed
from jaxformer.runs.loop import train
from jaxformer.runs.opened import Judge
from jaxformer.runs.predicting import task_of
from jaxformer.runs.progress import Display
from jaxformer.runs.record import IMPORT, check_resumable, git_revision, package_versions, write_record
from jaxformer.runs.teacher import check_teacher, teacher_model

__all__ = [
    "Display",
    "IMPORT",
    "Judge",
    "LEFT_OUT",
    "Lost",
    "StoredRun",
    "bind",
    "build_model",
    "contents",
    "check_resumable",
    "check_teacher",
    "claimed",
    "contents",
    "evaluate_run",
    "git_revision",
    "identity_of",
    "label_names",
    "load",
    "load_spread",
    "package_versions",
    "stored_run",
    "task_of",
    "teacher_model",
    "train",
    "write_record",
]

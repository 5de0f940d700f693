"""What a run has read, kept in its `config.json` as "fingerprints": the content of its data, its tokenizer, and the
runs that it takes parameters from. Where another is found later, the difference is named, and the run refused."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.checkpoint import checkpoint_of, content_of
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.runs.paths import is_there, paths_of, target
from jaxformer.storage import read_record
from jaxformer.tokenizers import Tokenizer, load_tokenizer

KEY = "fingerprints"  # in config.json
ALLOWED = "--allow-config-change"
OTHER_DATA = "does not find what it was trained with"
NOT_KEPT = (
    "keeps no fingerprints, which runs had not before: whether its data or tokenizer changed since cannot be told"
)
_NAMED = 5  # files, in one message
_log = logging.getLogger(__name__)


def taken(config: Config, tokenizer: Tokenizer, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fingerprints of what a run reads.

    `recorded` are those of the run that goes on: the run that it once started from may be gone by now, or stand at
    another step; it is read no more, and keeps its fingerprint.
    """
    found: dict[str, Any] = {"data": contents(config), "tokenizer": tokenizer.fingerprint}
    if config.init_from:
        found["init_from"] = (recorded or {}).get("init_from") or content_of(checkpoint_of(config.init_from))
    if config.distillation is not None:
        found["distillation.teacher"] = content_of(checkpoint_of(config.distillation.teacher))
    return found


def contents(config: Config) -> dict[str, dict[str, str]]:
    """Return {key of the config: {file or split: its digest or sizes}} of a config's data."""
    return {f"data.{key}": found for key, found in config.data.contents().items()}


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return one line for each recorded fingerprint that is another now, or is not recorded yet."""
    lines = []
    for key, now in found.items():
        if key == "data":
            lines += _of_data(recorded.get("data", now), now)
        elif key in recorded and recorded[key] != now:
            lines.append(f"{key}: {recorded[key]} -> {now}")
    return lines


def _of_data(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [
        f"{key}: {_change(before.get(key, {}), now.get(key, {}))}"
        for key in {**before, **now}
        if list(before.get(key, {}).values()) != list(now.get(key, {}).values())
    ]


def _change(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say in which files, or splits, the data differ. A file of equal content may have another name."""
    changed = [name for name in before if name in now and before[name] != now[name]]
    spare = Counter(now.values()) - Counter(before.values())
    gone = [name for name in before if name not in now and before[name] not in now.values()]
    new = [name for name in now if name not in before and spare[now[name]]]
    parts = [
        f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''} {what}"
        for names, what in ((changed, "changed"), (gone, "gone"), (new, "new"))
        if names
    ]
    if changed and not any(before[name].isalnum() for name in changed):  # sizes tell more than names
        parts = [f"{name}: {before[name]} -> {now[name]}" for name in changed[:_NAMED]] + parts[1:]
    return "; ".join(parts) or "the same files in another order, or not as often"


def differences_of_run(
    record: Mapping[str, Any], config: Config, labels: Sequence[str], found: Mapping[str, Any], tokenizer: Tokenizer
) -> list[str]:
    """Return how what a run that goes on finds differs from what its record says that it had read before.

    Its labels, which every run keeps, count with their order: that is the numbers of their classes.
    """
    lines = []
    if json.loads(json.dumps(labels)) != record["labels"]:
        lines.append(f"labels: {', '.join(map(str, record['labels']))} -> {', '.join(map(str, labels))}")
    if KEY not in record:
        return lines
    lines = differences(record[KEY], found) + lines
    if config.selected["tokenizer"] == "file" and is_there(config.tokenizer.path):
        named = load_tokenizer(config.tokenizer.path).fingerprint
        if named != tokenizer.fingerprint:
            lines.append(
                f"tokenizer.path: {config.tokenizer.path} is {named} now, and the run's own, which it keeps, "
                f"{tokenizer.fingerprint}"
            )
    return lines


def check_tokenizer(workdir: Path, record: Mapping[str, Any], tokenizer: Tokenizer, allow_change: bool) -> None:
    """Raise UserError where a run's `tokenizer.json` is not the one that it was trained with, unless `allow_change`."""
    if KEY not in record:
        _log.warning("%s %s", workdir, NOT_KEPT)
        return
    lines = differences(record[KEY], {"tokenizer": tokenizer.fingerprint})
    _refuse(workdir / "tokenizer.json", "is not the tokenizer that the run was trained with", lines, allow_change)


def check_data(workdir: Path, config: Config, own: Config, allow_change: bool) -> None:
    """Raise UserError where the data of a run, whose config is `own`, have changed, unless `allow_change`. Where
    `config` names other data, they are not the run's, and nothing is compared."""
    recorded = read_record(workdir).get(KEY, {}).get("data", {})
    ours, theirs = _places(config), _places(own)
    same = [key for key in recorded if _place(key, ours) == _place(key, theirs)]
    if same and config.selected["data"] == own.selected["data"]:
        found = contents(config)
        lines = _of_data({key: recorded[key] for key in same}, {key: found.get(key, {}) for key in same})
        _refuse(workdir, OTHER_DATA, lines, allow_change)


def refusal(where: Path, what: str, lines: Sequence[str]) -> UserError:
    """Return the error that says what about a run is not what it was."""
    return UserError(f"{where} {what} ({'; '.join(lines)}); bring back what it was, or go on with {ALLOWED}")


def _refuse(where: Path, what: str, lines: Sequence[str], allow_change: bool) -> None:
    if lines and not allow_change:
        raise refusal(where, what, lines)
    if lines:
        _log.warning("%s %s (%s); going on, as %s says", where, what, "; ".join(lines), ALLOWED)


def _places(config: Config) -> dict[str, Any]:
    """Return what names the data of a config, by the recorded keys that it belongs to, with one spelling for a path."""
    paths = {key: target(path) for key, path in paths_of(config.to_dict()).items() if key.startswith("data.")}
    members = [member.get("dataset", member["name"]) for member in getattr(config.data, "members", ())]
    dataset = (getattr(config.data, "dataset", ""), paths.get("data.data_dir"))
    inner = {key: path for key, path in paths.items() if key.startswith("data.members[")}
    return paths | {"data.members": (members, inner), "data.dataset": dataset}


def _place(key: str, places: Mapping[str, Any]) -> Any:
    """Return what names the data of a recorded key."""
    return places.get("data.members" if key.startswith("data.members[") else key)

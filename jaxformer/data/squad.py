"""Questions about a text whose answers stand in it, as SQuAD's files hold them."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxformer.data.files import Files, json_of
from jaxformer.data.finding import KINDS, Kind
from jaxformer.data.kinds import check_answers
from jaxformer.data.records import Malformed, Record, Rows
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SQuAD(Files):
    """SQuAD's JSON, 1.1 and 2.0: questions with `id`, `title`, `question`, `context` and `answers`, none where it is
    impossible to answer. Its documents are the contexts, each once."""

    text_field: str = "context"
    label_field: str = "answers"
    KIND: ClassVar[Kind] = KINDS["squad"]

    def stored(self, part: str, labelled: bool) -> Rows:
        return itertools.chain.from_iterable(self._read(file, labelled) for file in self.files(part))

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        return self._read(file, True)

    def _read(self, file: Path, labelled: bool) -> Iterator[tuple[str, Record | Malformed]]:
        for where, title, paragraph in _paragraphs(file):
            if isinstance(paragraph, Malformed):
                yield where, paragraph
            elif not labelled:
                yield where, {"title": title, "context": paragraph["context"]}
            else:
                for number, asked in enumerate(paragraph["qas"]):
                    yield (place := f"{where}.qas[{number}]"), _question(asked, title, paragraph["context"], place)


def _paragraphs(file: Path) -> Iterator[tuple[str, str, Mapping[str, Any] | Malformed]]:
    """Yield (where, title, paragraph) of a file, or what is wrong with one."""
    held = json_of(file)
    articles = held.get("data") if isinstance(held, dict) else None
    if not isinstance(articles, list):
        raise UserError(
            f"{file}: not as SQuAD's files are: an object with a list 'data' of articles with 'paragraphs'; "
            "data.name=json_lines reads other JSON"
        )
    for place, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            where = f"{file} data[{place}]"
            yield where, "", Malformed(f"{where}: no list 'paragraphs'")
            continue
        title = article.get("title")
        for number, paragraph in enumerate(paragraphs):
            where = f"{file} data[{place}].paragraphs[{number}]"
            there = isinstance(paragraph, dict)
            if not there or not isinstance(paragraph.get("context"), str) or not isinstance(paragraph.get("qas"), list):
                yield where, "", Malformed(f"{where}: not a paragraph with a text 'context' and a list 'qas'")
            else:
                yield where, title if isinstance(title, str) else "", paragraph


def _question(asked: Any, title: str, context: str, where: str) -> Record | Malformed:
    if not isinstance(asked, dict) or not isinstance(asked.get("question"), str):
        return Malformed(f"{where}: not a question: no text 'question'")
    record = {"id": str(asked.get("id", "")), "title": title, "question": asked["question"], "context": context}
    answers = [] if asked.get("is_impossible") is True else asked.get("answers")
    if answers is None:  # a question to be answered
        return record | {"answers": None}
    try:
        found = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
        check_answers(found, {"context": context}, f"{where} (question {record['id']})")
    except Malformed as error:
        return error
    except (TypeError, KeyError, AttributeError):
        return Malformed(f"{where}: 'answers' is not a list of answers with 'text' and 'answer_start'")
    return record | {"answers": found}

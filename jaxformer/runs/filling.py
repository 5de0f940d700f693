"""Masks filled: what a run's model finds likeliest at the masks of texts."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxformer.checks import check_range
from jaxformer.data import Malformed
from jaxformer.errors import UserError
from jaxformer.generation import Candidates, Masked, fill
from jaxformer.runs.shapes import batches_by_length, windows
from jaxformer.tokenizers import ROLES

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun

# What people write for a mask; each tokenizer knows one spelling alone.
_MASK = re.compile("|".join([*map(re.escape, ROLES["mask"]), r"<extra_id_\d+>"]), re.IGNORECASE)


class Asking(NamedTuple):
    """How masks are filled: how many candidates are told of each (None: 5, or all targets), the words that alone are
    candidates (none: the whole vocabulary), whether masks are filled one by one, the most certain first, and the field
    of rows whose text it is."""

    top: int | None = None
    targets: tuple[str, ...] = ()
    one_by_one: bool = False
    field: str = "text"


class Blank(NamedTuple):
    """A text to be filled: as it was given, its ids with the tokens around it, the places of its masks, and for each
    of them whether the mask stands for a space, too, as the word that belongs there would."""

    prompt: str
    ids: np.ndarray
    places: list[int]
    spaced: list[bool]


class Chosen(NamedTuple):
    """What may stand at a mask: bool [2, V], of a mask without a space and of one with; and how many are told."""

    allowed: np.ndarray
    top: int


def mask_of(run: "LoadedRun") -> str:
    """Return how the run's tokenizer spells its mask. Raises UserError, which says why, for a run that fills none."""
    family, learnt = run.config.model.family, run.supervision
    if family == "decoder_only":
        raise UserError(
            "a decoder_only model fills no masks: it predicts the token behind a text, seeing nothing of what follows; "
            "`jaxformer generate` lets it go on"
        )
    if not run.model.predicts_tokens:
        raise UserError(
            f"this run has learnt a task, {learnt.name}, and its model has no vocabulary to fill masks from: that of "
            "the pretrained run that it started from has; `jaxformer predict` gives this one's answers"
        )
    if not learnt.fills_masks:
        verb = "`jaxformer generate` lets it write" if family == "encoder_decoder" else "train one with masked_lm"
        raise UserError(f"this run has learnt {learnt.name}, in which nothing is filled into masks; {verb}")
    (spelling,) = run.tokenizer.tokens([run.tokenizer.vocabulary.id("mask")])
    return spelling


def blank(run: "LoadedRun", text: str, where: str) -> Blank:
    """Return a text as what is filled. Raises Malformed, which names `where`, for one without a mask, and for one that
    is too long."""
    spelling, vocabulary = mask_of(run), run.tokenizer.vocabulary
    (encoding,) = run.tokenizer.encode_batch([text], special=True, reads="mask")
    ids = np.array(encoding.ids, np.int32)
    places = np.flatnonzero(ids == vocabulary.id("mask")).tolist()
    if not places:
        found = _MASK.search(text)
        said = f"{found[0]} is no mask of this run's tokenizer" if found else "there is no mask in it"
        raise Malformed(f"{where}: {said}; write {spelling} where a token is to be filled in")
    longest = run.model.config.max_length
    if len(ids) > longest:
        raise Malformed(
            f"{where}: {len(ids):,} tokens, those around it included, and the model reads {longest:,} "
            "(model.max_length); shorten it"
        )
    return Blank(text, ids, places, [_stands_for_space(text, encoding.offsets, place) for place in places])


def _stands_for_space(text: str, offsets: Sequence[tuple[int, int]], place: int) -> bool:
    """Say whether a space stands before a token that belongs to no other token."""
    start = offsets[place][0]
    before = offsets[place - 1][1] if place else 0
    return start > before and text[start - 1].isspace()


def chosen(run: "LoadedRun", asking: Asking) -> Chosen:
    """Return what may stand at masks. Raises UserError for more candidates than there are tokens, and for targets that
    are no tokens."""
    mask_of(run)
    if asking.top is not None:
        check_range("top", asking.top, at_least=1)
    if asking.targets:
        return Chosen(_targets(run, asking.targets), asking.top or len(set(asking.targets)))
    known = np.zeros(run.tokenizer.vocab_size, bool)
    known[list(run.tokenizer.backend.get_vocab().values())] = True
    top = asking.top or min(5, int(known.sum()))
    if top > known.sum():
        raise UserError(f"top: {top:,} candidates, but the vocabulary has {known.sum():,} tokens; ask for fewer")
    return Chosen(np.stack([known, known]), top)


def _targets(run: "LoadedRun", words: Sequence[str]) -> np.ndarray:
    """Return which tokens are meant by words, bool [2, V]: written as they are, and behind a space. Where only one of
    the two is a token, it is that one. Raises UserError, which names them, for words that are none."""
    allowed, refused = np.zeros((2, run.tokenizer.vocab_size), bool), []
    for word in words:
        alone, spaced = _token_of(run, word), _token_of(run, f" {word}")
        spelled = run.tokenizer.backend.token_to_id(word)  # "##s", which no text is read as
        meant = [id for id in (alone, spaced, spelled) if id is not None]
        if meant:
            allowed[0, meant[0]] = allowed[1, meant[0] if spaced is None else spaced] = True
        else:
            pieces = run.tokenizer.tokens(run.tokenizer.encode(word))
            wrong = f"{len(pieces)} tokens ({' '.join(pieces)})" if len(pieces) > 1 else "not in the vocabulary"
            refused.append(f"{word!r} is {wrong}")
    if refused:
        raise UserError(f"targets: {'; '.join(refused)}; a mask is filled with one token, so give words that are one")
    return allowed


def _token_of(run: "LoadedRun", text: str) -> int | None:
    """Return the id of the token that a text is, or None of one that is none, or several."""
    ids = run.tokenizer.encode(text).tolist()
    return ids[0] if len(ids) == 1 and ids[0] != run.tokenizer.vocabulary.special.get("unknown") else None


def filled(
    run: "LoadedRun", blanks: Sequence[Blank], asking: Asking, choice: Chosen, batch_size: int = 0
) -> list[dict[str, Any]]:
    """Return of each text {"prompt", "text", "masks"}: as it was given, with the likeliest token at each mask, and the
    candidates of each mask, the likeliest first: {"score", "token", "token_str", "sequence"}."""
    size = batch_size or run.config.evaluation_rows
    found: list[dict[str, Any]] = []
    for window in windows(blanks, size):
        answers: list[Any] = [None] * len(window)
        for places in batches_by_length([len(each.ids) for each in window], size):
            batch = [window[place] for place in places]
            fill_batch = _one_by_one if asking.one_by_one else _independently
            for place, answer in zip(places, fill_batch(run, batch, choice), strict=True):
                answers[place] = answer
        found += answers
    return found


def _candidates(
    run: "LoadedRun", batch: Sequence[Blank], rows: Sequence[np.ndarray], left: Sequence[Sequence[int]], choice: Chosen
) -> list[list[Candidates]]:
    """Return the candidates at the masks of each text whose numbers are `left`."""
    masked = [
        Masked(row, [each.places[number] for number in numbers], [int(each.spaced[number]) for number in numbers])
        for each, row, numbers in zip(batch, rows, left, strict=True)
    ]
    start = run.tokenizer.vocabulary.special.get(run.model.config.decoder_start, 0)
    return fill(run.model, run.params, masked, top=choice.top, allowed=choice.allowed, start_id=start)


def _independently(run: "LoadedRun", batch: Sequence[Blank], choice: Chosen) -> list[dict[str, Any]]:
    """Fill each mask given that the others are masks."""
    rows, left = [each.ids for each in batch], [range(len(each.places)) for each in batch]
    answers = []
    for each, found in zip(batch, _candidates(run, batch, rows, left, choice), strict=True):
        likeliest = _put(each.ids, each.places, [of_mask.ids[0] for of_mask in found])
        masks = [_told(run, each.ids, number, of_mask, each.places) for number, of_mask in enumerate(found)]
        answers.append({"prompt": each.prompt, "text": _spelled(run, likeliest, []), "masks": masks})
    return answers


def _one_by_one(run: "LoadedRun", batch: Sequence[Blank], choice: Chosen) -> list[dict[str, Any]]:
    """Fill the mask whose likeliest token is the most certain, then the most certain of the others given that one, and
    so on; the candidates of each are those at the time."""
    rows = [each.ids for each in batch]
    left = [list(range(len(each.places))) for each in batch]
    masks: list[list[Any]] = [[None] * len(each.places) for each in batch]
    while any(left):
        there = [number for number, numbers in enumerate(left) if numbers]
        asked = [batch[number] for number in there], [rows[number] for number in there], [left[n] for n in there]
        for number, found in zip(there, _candidates(run, *asked, choice), strict=True):
            surest = int(np.argmax([of_mask.probabilities[0] for of_mask in found]))
            mask, places = left[number][surest], [batch[number].places[other] for other in left[number]]
            masks[number][mask] = _told(run, rows[number], surest, found[surest], places)
            rows[number] = _put(rows[number], [places[surest]], [found[surest].ids[0]])
            del left[number][surest]
    return [
        {"prompt": each.prompt, "text": _spelled(run, row, []), "masks": of_text}
        for each, row, of_text in zip(batch, rows, masks, strict=True)
    ]


def _put(ids: np.ndarray, places: Sequence[int], tokens: Sequence[Any]) -> np.ndarray:
    changed = ids.copy()
    changed[list(places)] = tokens
    return changed


def _told(
    run: "LoadedRun", ids: np.ndarray, number: int, found: Candidates, places: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the candidates of one of the masks at `places`; the others stand in the texts as masks."""
    others = [*places[:number], *places[number + 1 :]]
    return [
        {
            "score": float(probability),
            "token": int(token),
            "token_str": run.tokenizer.decode([token], skip_special=False),
            "sequence": _spelled(run, _put(ids, [places[number]], [token]), others),
        }
        for token, probability in zip(found.ids, found.probabilities, strict=True)
    ]


def _spelled(run: "LoadedRun", ids: np.ndarray, masks: Sequence[int]) -> str:
    """Return the text of ids, without special tokens but for those at the places of `masks`."""
    kept = ~run.tokenizer.vocabulary.is_special[ids]
    kept[list(masks)] = True
    return run.tokenizer.decode(ids[kept], skip_special=False)


def as_text(answer: Mapping[str, Any]) -> str:
    """Return an answer as people read it: the text, a line for each candidate, and, of several masks, all filled."""
    if "error" in answer:
        return f"{answer['error']}"
    masks, lines = answer["masks"], [answer["prompt"]]
    width = max(len(each["token_str"].strip()) for candidates in masks for each in candidates)
    for number, candidates in enumerate(masks, 1):
        for rank, each in enumerate(candidates):
            name = f"mask {number}" if len(masks) > 1 else ""
            head = f"  {name if rank == 0 else ' ' * len(name)}{'  ' if name else ''}{each['score']:.4f}"
            lines.append(f"{head}  {each['token_str'].strip():<{width}}  {each['sequence'].strip()}")
    return "\n".join([*lines, *([f"  all     {answer['text'].strip()}"] if len(masks) > 1 else [])])

"""Texts that end an answer, or that it is one of, as automata: tables [states, tokens] of the state that a token leads
to. A row begins in state 0, and one number is all that the compiled loop keeps of what it has written.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxformer.errors import UserError

NOT_ALLOWED = -1


def stop_table(stops: Sequence[str], pieces: Sequence[str]) -> np.ndarray:
    """Return the automaton that sees any of some texts written: int32 [S, V], the last state is that it was.

    `pieces` are the texts of the tokens, [V]. A text is found wherever it begins and ends in its tokens (Aho and
    Corasick, 1975).
    """
    beginnings = sorted({stop[:end] for stop in stops for end in range(len(stop))}, key=len)  # whole ones have matched
    states = {text: number for number, text in enumerate(beginnings)}
    matched = len(beginnings)
    letters = {letter: number for number, letter in enumerate(sorted(set("".join(stops))))}

    def after(text: str) -> int:
        """Return the state of a text: that of its longest end that begins a stop."""
        if any(text.endswith(stop) for stop in stops):
            return matched
        return next(states[text[start:]] for start in range(len(text) + 1) if text[start:] in states)

    steps = np.zeros((matched + 1, len(letters) + 1), np.int32)  # the last letter is every other one
    steps[matched] = matched
    for text, state in states.items():
        for letter, number in letters.items():
            steps[state, number] = after(text + letter)
    return _after_pieces(steps, letters, pieces)


def _after_pieces(steps: np.ndarray, letters: Mapping[str, int], pieces: Sequence[str]) -> np.ndarray:
    """Return int32 [S, V]: where each state is after all letters of a piece. `steps` [S, letters + 1]."""
    longest = max(map(len, pieces), default=0)
    table = np.repeat(np.arange(len(steps), dtype=np.int32)[:, None], len(pieces), axis=1)
    spelled = np.full((len(pieces), longest), -1, np.int32)
    for row, piece in zip(spelled, pieces, strict=True):
        row[: len(piece)] = [letters.get(letter, len(letters)) for letter in piece]
    for column in spelled.T:
        there = np.flatnonzero(column >= 0)
        table[:, there] = steps[table[:, there], column[there]]
    return table


def choice_table(choices: Sequence[np.ndarray], vocab_size: int, end_id: int) -> np.ndarray:
    """Return the automaton that allows nothing but one of some rows of ids: int32 [S, V], `NOT_ALLOWED` where no choice
    goes on; the last state is that one is whole.

    A choice that begins another one is told from it by the end token. Raises UserError where the vocabulary has none.
    """
    whole = {tuple(choice.tolist()) for choice in choices}
    beginnings = sorted({choice[:end] for choice in whole for end in range(len(choice))} | {()}, key=len)
    states = {row: number for number, row in enumerate(beginnings)}
    final = len(beginnings)
    table = np.full((final + 1, vocab_size), NOT_ALLOWED, np.int32)
    for choice in whole:
        for place, token in enumerate(choice):
            table[states[choice[:place]], token] = states.get(choice[: place + 1], final)
        if choice in states:
            if not 0 <= end_id < vocab_size:
                raise UserError(
                    "generation.choices: one of them begins another one, and this model has no end token that tells "
                    "them apart; end each with something, such as a full stop"
                )
            table[states[choice], end_id] = final
    return table

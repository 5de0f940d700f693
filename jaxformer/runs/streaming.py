"""Text as it is written: what of an answer that grows will stay."""

from collections.abc import Iterable, Iterator, Sequence

_BROKEN = "\ufffd"  # what decoding makes of bytes that are no character, or not one yet


def pieces(texts: Iterable[str], stops: Sequence[str] = ()) -> Iterator[str]:
    """Yield, of an answer that grows from text to text, what is new and will not be taken back; the last text is the
    whole answer, and the pieces together are it.

    Held back are the bytes of a character that is not complete yet, and the beginning of a stop string, until it is
    clear what they become.
    """
    said = text = ""
    for text in texts:
        settled = _settled(text, stops)
        if len(settled) > len(said) and settled.startswith(said):
            yield settled[len(said) :]
            said = settled
    if text != said and text.startswith(said):
        yield text[len(said) :]


def _settled(text: str, stops: Sequence[str]) -> str:
    """Return the beginning of a text that what follows cannot change."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    text = text[: min(places, default=len(text))].rstrip(_BROKEN)
    held = max((_overlap(text, stop) for stop in stops), default=0)
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may begin a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)

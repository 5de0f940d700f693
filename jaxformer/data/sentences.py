"""Where sentences begin: by Unicode's rules for all scripts, or at the ends of lines.

The rules are those of Unicode's annex 29 (sentence boundaries), with what readers of prose need besides: a full stop
behind an abbreviation ends nothing, one without white space behind it (3.14, os.path) neither, and a text that begins
its sentences in lower case has ends before lower case. Thai, Lao and Tibetan have no marks that always end a sentence:
give such texts one sentence a line, and `data.sentences=lines`.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

# Unicode 17, Sentence_Break=STerm, the ASCII ones ! and ? apart: no space need follow. A table, as the standard library
# has none, so that no version of Python or of a library changes a store.
_MARKS = (
    "0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E 1735-1736 "
    "17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 203C-203D "
    "2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F "
    "A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE56-FE57 FF01 FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 "
    "11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 "
    "1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 "
    "11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88"
)
_WIDE_STOPS = "﹒．"  # full stops that no space follows, and inside numbers
_WIDE = frozenset(_WIDE_STOPS).union(
    chr(code)
    for first, _, last in (part.partition("-") for part in _MARKS.split())
    for code in range(int(first, 16), int(last or first, 16) + 1)
)
# Sentence_Break=SContinue: what follows a mark and goes on with its sentence.
_CONTINUES = frozenset(",-:;\u037e\u055d\u060c\u060d\u07f8\u1802\u1808–—、︐︑︓︔︱︲﹐﹑﹔﹕﹘﹣，－：；､")  # noqa: RUF001
_MARK = ".!?…" + "".join(sorted(mark for mark in _WIDE if mark < "\U00010000"))
_EITHER = "“‘«‹"  # noqa: RUF001  # they close in some languages and open in others
_CLOSING = "\"'”’»›)\\]}」』】〉》〕〗〙〛）］｝｠｣"  # noqa: RUF001
# Marks, what closes behind them and white space; or a blank line. It begins with one set of characters, for which the
# library searches fast if it has few ranges beyond U+FFFF: so there are letters in it, which are not in _WIDE.
_ENDS = re.compile(
    rf"[{_MARK}\n\u2029\U00010a56-\U0001da88](?:(?<=[\n\u2029])(?P<blank>\s*)"
    rf"|(?<![\n\u2029])[{_MARK}]*(?P<close>[{_CLOSING}{_EITHER}]*)(?P<space>\s*))"
)
_OPENING = re.compile(r"(?:[\"'“”„‘‚«»‹›(\[{¿¡「『【〈《〔（［｛]|[—–]\s?){0,3}")  # noqa: RUF001
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|approx)|(?<!\w)([^\W\d_]))\.$")
_SMALL_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|cf|vs|mr|mrs|ms|dr|prof|st|fig|approx|[^\W\d_])\.$")
_LINE_END = re.compile(r"[\n\r\u2028\u2029]\s*")


def sentence_starts(text: str) -> list[int]:
    """Return the character at which each sentence of a text begins, the first included."""
    first = len(text) - len(text.lstrip())
    starts: list[int] = []
    small: list[int] = []  # where one begins if the sentences of this text begin in lower case
    letters = [_first_letter(text, first)]
    for match in _ENDS.finditer(text):
        start = match.end()
        if match["close"] and not match["space"] and text[match.start()] in _WIDE:
            start -= len(match["close"].lstrip(_CLOSING))  # no space comes before what opens the next one either
        if not first < start < len(text):
            continue
        letter = _first_letter(text, start)
        verdict = _ends(text, match, letter)
        if verdict is not None:
            letters.append(letter)
            (starts if verdict else small).append(start)
    capitals, lower = sum(map(str.isupper, letters)), sum(map(str.islower, letters))
    return [first, *(sorted([*starts, *small]) if lower > capitals else starts)]


def line_starts(text: str) -> list[int]:
    """Return the character at which each line of a text that is not empty begins."""
    first = len(text) - len(text.lstrip())
    return [first, *(match.end() for match in _LINE_END.finditer(text) if first < match.end() < len(text))]


def _ends(text: str, match: re.Match[str], letter: str) -> bool | None:
    """Say whether a sentence ends at a match and another begins with `letter`: None is no, False if sentences of the
    text begin in lower case."""
    mark, space = text[match.start()], match["space"]
    if space is None:
        return True if "\u2029" in match[0] or match[0].count("\n") >= 2 else None
    if mark in _WIDE:  # a full stop of full width may stand inside a number
        goes_on = text[match.end()] in _CONTINUES or (mark in _WIDE_STOPS and letter.isdecimal())
        return None if goes_on else True
    if space.count("\n") >= 2 or "\u2029" in space:
        return True
    if not letter.isalnum():
        return None
    if not space:  # 3.14, os.path, ?key=value; but Chinese may have the ASCII marks
        return True if mark in "!?" and unicodedata.category(letter) == "Lo" else None
    if mark in "!?" and letter.islower():
        quoted = bool(match["close"])  # "What?" he said
        return False if quoted or text[match.start() - 1 : match.start()].isspace() else True
    if mark in "!?…" or text[match.start() + 1] in ".!?…":
        return None if letter.islower() else True
    before = text[max(0, match.start() - 7) : match.start() + 1]
    if letter.islower():
        return None if match["close"] or _SMALL_ABBREVIATION.search(before) else False
    abbreviation = _ABBREVIATION.search(before)
    return None if abbreviation and (abbreviation[1] or "A").isupper() else True


def _first_letter(text: str, start: int) -> str:
    """Return the first character of a sentence behind what opens it, "" where there is none."""
    opening = _OPENING.match(text, start)
    end = opening.end() if opening else start
    return text[end : end + 1]


class Splitter(NamedTuple):
    """A rule, and its name in the fingerprint of a store: another rule is another name."""

    name: str
    starts: Callable[[str], list[int]]


# By the value of data.sentences.
SPLITTERS = {"unicode": Splitter("unicode-1", sentence_starts), "lines": Splitter("lines-1", line_starts)}

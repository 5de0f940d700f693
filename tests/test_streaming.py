"""Text as it is written: whole characters, and nothing that a stop string takes back."""

import pytest

from jaxformer.runs.streaming import pieces


@pytest.mark.parametrize(
    ("texts", "stops", "expected"),
    [
        pytest.param(["The", "The end", "The end"], [], ["The", " end"], id="what is new"),
        pytest.param(["a\ufffd", "a\ufffd", "aé!"], [], ["a", "é!"], id="half a character waits"),
        pytest.param(["a", "a\ufffd"], [], ["a", "\ufffd"], id="bytes that never become one come at the end"),
        pytest.param(["a\ufffdb", "a\ufffdbc"], [], ["a\ufffdb", "c"], id="and in the middle"),
        pytest.param(["one", "one\n", "one"], ["\n\n"], ["one"], id="a stop string that came"),
        pytest.param(["one", "one\n", "one\ntwo"], ["\n\n"], ["one", "\ntwo"], id="one that did not"),
        pytest.param(["a ST", "a STO", "a STONE"], ["STOP", "TON!"], ["a ", "STONE"], id="several, the longest waits"),
        pytest.param(["go ###", "go ### more", "go "], ["##"], ["go "], id="whole and taken back"),
        pytest.param([], [], [], id="nothing"),
        pytest.param(["", ""], ["x"], [], id="nothing written"),
    ],
)
def test_pieces_by_hand(texts: list[str], stops: list[str], expected: list[str]) -> None:
    assert list(pieces(texts, stops)) == expected


@pytest.mark.parametrize("text", ["Zürich 🙂 is old.", "日本語のテキスト", "naïve\n\ncafé"])
def test_bytes_one_at_a_time_make_the_text(text: str) -> None:
    data = text.encode()
    found = list(pieces([data[:n].decode(errors="replace") for n in range(len(data) + 1)]))
    assert "".join(found) == text and "\ufffd" not in "".join(found)
    assert max(map(len, found)) == 1

"""Pages of a report, as tests look at them."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


def visible_text(page: Path) -> str:
    """The words of a page as a reader sees them, tags and styles gone."""
    words: list[str] = []

    class Reader(HTMLParser):
        hidden = 0

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.hidden += tag in ("style", "svg")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag in ("style", "svg")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                words.append(data)

    Reader().feed(page.read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", " ".join(words))

"""The rooms of the package: their order, what they import, and how readers are shown them.

python tests/rooms.py        # draws docs/rooms.svg and writes the lists of README.md and CONTRIBUTING.md anew
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxformer"
PICTURE = ROOT / "docs" / "rooms.svg"

# Top to bottom. A room imports only from rooms that stand after it; inside a room imports are free.
ORDER = (
    "__main__", "__init__", "cli", "studies", "interop", "planning", "explain", "report", "runs", "config",
    "evaluation", "generation", "training", "data", "tasks", "objectives", "models", "checkpoint", "launch",
    "tokenizers", "footprint", "devices", "storage", "trees", "tables", "checks", "errors",
)  # fmt: skip
PLACE = {room: place for place, room in enumerate(ORDER)}
SHOWN = ORDER[2:]


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


FILES = [*sources(PACKAGE), *sources(ROOT / "launch")]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    """Return the room of a file of the package: `models` for models/layers.py, `config` for config.py."""
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield (line, module, names) of every import, also those inside functions; `package` resolves relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def rooms_read(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, room) for every room of the package that a file imports from; `__init__` for the package's own."""
    for line, module, names in imports(parse(path), package="jaxformer"):
        first, *rest = module.split(".")
        if first != "jaxformer":
            continue
        if rest:
            yield line, rest[0]
        else:
            yield from (
                (line, name if name in PLACE else "__init__")
                for name in names or ("__init__",)
                if name != "__version__"
            )


def sentence(room: str) -> str:
    """Return what a room says of itself first."""
    folder = ROOT / room if room == "launch" else PACKAGE / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    paragraph = (ast.get_docstring(parse(path)) or "").partition("\n\n")[0]
    return re.split(r"\.(?: |$)", " ".join(paragraph.split()), maxsplit=1)[0]


def listed() -> str:
    """Return the rooms, top to bottom, each with its sentence: the list of README.md and CONTRIBUTING.md."""
    names = {room: f"{room}/" if (PACKAGE / room).is_dir() or room == "launch" else f"{room}.py" for room in SHOWN}
    return "".join(f"    {names[room]:<14} {sentence(room)}\n" for room in SHOWN)


LIST = re.compile(r"(?<=<!-- rooms -->\n\n)(?:    .*\n)+(?=\n<!-- /rooms -->)")


def drawn() -> str:
    """Return the picture: a row for each room, and a dot in the column of each room that it imports from. All dots lie
    on one side of the diagonal, for imports run downward."""
    counts = Counter(
        (room_of(path), read)
        for path in FILES
        for _, read in rooms_read(path)
        if read in SHOWN and room_of(path) in SHOWN
    )
    row, left, top, words = 24, 110, 96, 26 + 24 * len(SHOWN)
    width, height = left + words + 560, top + row * len(SHOWN) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, room in enumerate(SHOWN):
        said = escape(sentence(room).partition(":")[0])
        y, x = top + row * place + row // 2, left + row * place + row // 2
        if place % 2 == 0:
            lines.append(f'<rect x="0" y="{y - row // 2}" width="{width}" height="{row}" fill="#f4f5f7"/>')
        lines.append(f'<rect x="{x - 12}" y="{y - 12}" width="24" height="24" fill="#dfe2e7"/>')
        lines.append(f'<text x="12" y="{y + 4}" font-weight="bold">{room}</text>')
        lines.append(f'<text x="{x + 4}" y="{top - 8}" transform="rotate(-60 {x + 4} {top - 8})">{room}</text>')
        lines.append(f'<text x="{left + words}" y="{y + 4}" fill="#6a717c">{said}</text>')
    for (reader, read), count in sorted(counts.items()):
        if reader != read:
            x, y = left + row * SHOWN.index(read) + row // 2, top + row * SHOWN.index(reader) + row // 2
            radius = min(3 + count**0.5, 10)
            said = f"{reader} imports from {read} in {count} place{'s' * (count > 1)}"
            lines.append(f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="#0072b2"><title>{said}</title></circle>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(LIST.sub(lambda _: listed(), text), encoding="utf-8")

"""The built-in corpus: the documentation that every Python carries, as a TFDS builder that needs no TensorFlow.

Text comes from `pydoc_data.topics` and from the docstrings of the standard library, read from source with `ast`:
nothing is imported. It differs by Python version, so the builder's configs name the minor version.
"""

import ast
import functools
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"
MIN_WORDS = 8  # shorter docstrings say too little to be labelled
SKIPPED = ("test", "tests", "idlelib", "site-packages", "lib2to3", "pydoc_data", "encodings", "turtledemo", "ensurepip")

# Area of the library -> its top-level modules, after the chapters of the Library Reference.
AREAS: dict[str, str] = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading _threading_local "
    "contextvars _weakrefset signal select",
    "data": "abc array bisect calendar collections copy dataclasses datetime enum graphlib heapq pprint reprlib types "
    "weakref zoneinfo _collections_abc _pydatetime contextlib functools operator _py_abc",
    "development": "bdb cProfile cgitb code codeop cmd doctest faulthandler pdb profile pstats pydoc timeit trace "
    "tracemalloc unittest venv distutils optparse argparse getopt gettext locale logging",
    "files": "fileinput filecmp fnmatch genericpath glob io linecache ntpath os pathlib posixpath shutil stat tempfile "
    "zipfile tarfile gzip bz2 lzma zlib _compression dbm shelve pickle pickletools sqlite3 _pyio",
    "formats": "base64 binascii configparser csv html json mailbox mimetypes netrc plistlib quopri tomllib uu xml "
    "xdrlib email sgmllib binhex",
    "gui": "tkinter turtle curses colorsys imghdr sndhdr wave aifc sunau chunk",
    "language": "ast compileall dis inspect importlib keyword modulefinder opcode pkgutil py_compile pyclbr runpy site "
    "symtable tabnanny token tokenize traceback warnings zipimport __future__ _bootsubprocess codecs sysconfig",
    "network": "cgi ftplib http imaplib ipaddress nntplib poplib smtpd smtplib socket socketserver ssl telnetlib "
    "urllib uuid webbrowser wsgiref xmlrpc asyncore asynchat",
    "numbers": "cmath decimal _pydecimal fractions math numbers random secrets statistics hashlib hmac _pylong",
    "text": "difflib re string stringprep textwrap unicodedata sre_compile sre_parse sre_constants readline "
    "rlcompleter shlex struct",
}
AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}


class StdlibDocs(tfds.core.GeneratorBasedBuilder):
    """`documents_*`: one document per module or topic, to pretrain on. `docstrings_*`: docstrings with the area of the
    library that they belong to. A docstring held out of training is in no training document, unless one quotes it."""

    name = "stdlib_docs"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=f"{kind}_{PYTHON}", description=f"{kind} of {PYTHON}")
        for kind in ("documents", "docstrings")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"name": tfds.features.Text(), "text": tfds.features.Text()}
        if self.builder_config.name.startswith("docstrings"):
            features |= {
                "area": tfds.features.ClassLabel(names=sorted(AREAS)),
                "summary": tfds.features.Text(),
                "body": tfds.features.Text(),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Documentation of the Python standard library.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        make = labelled if self.builder_config.name.startswith("docstrings") else documents
        for example in make(split):
            yield example["name"], example


def split_of(text: str) -> str:
    """Return the split of a docstring, by a hash of its words: equal texts are never on both sides."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()[0]
    return "train" if digest < 190 else "validation" if digest < 212 else "test"


def labelled(split: str) -> Iterator[dict[str, Any]]:
    """Yield one example per distinct docstring of a labelled module: name, text, area, summary, body."""
    seen = set()
    for module, docstrings in modules():
        area = AREA_OF.get(module.split(".")[0])
        for name, text in docstrings:
            key = " ".join(text.split())
            if area is None or key in seen or len(key.split()) < MIN_WORDS or split_of(text) != split:
                continue
            seen.add(key)
            summary, _, body = text.partition("\n\n")
            yield {"name": name, "text": text, "area": area, "summary": " ".join(summary.split()), "body": body}


def documents(split: str) -> Iterator[dict[str, Any]]:
    """Yield one document per module (those of its docstrings that fall into the split) and per topic."""
    for module, docstrings in modules():
        kept = dict.fromkeys(text for _, text in docstrings if split_of(text) == split)
        if kept:
            yield {"name": module, "text": "\n\n".join(kept)}
    for topic, text in topics():
        if split_of(topic) == split:
            yield {"name": f"topic {topic}", "text": text}


def topics() -> list[tuple[str, str]]:
    """Return (topic, text) of `pydoc_data.topics`, sorted."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return sorted((key, _clean(text)) for key, text in ast.literal_eval(node.value).items())
    return []


@functools.cache
def modules() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (module, [(qualified name, docstring), …]) of the standard library, sorted by module."""
    result = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in SKIPPED or part.startswith(("test_", "_test")) for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and files for older Pythons
        module = ".".join(part for part in parts if part != "__init__")
        if found := list(_docstrings(tree, module)):
            result.append((module, found))
    return result


def _docstrings(node: Any, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text:
        yield name, _clean(text)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            # The line number tells overloads of one name apart.
            yield from _docstrings(child, f"{name}.{child.name}:{child.lineno}")


def _clean(text: str) -> str:
    """Drop the decoration of reStructuredText: underlines, and runs of blank lines."""
    text = re.sub(r"^[=\-*~^\"#.+|]{3,}$", "", text.strip(), flags=re.MULTILINE)
    return re.sub(r"\n\s*\n\s*", "\n\n", text).strip()

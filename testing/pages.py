"""The blocks of code of the pages of docs/, and how to run them as a reader does.

A comment in the Markdown, which no reader sees, says how a block that cannot run on every machine
is checked: ``<!-- test: WORD -->`` on the line before the block, a word of `MARKS`.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testing.application import ROOT

MARKS = {
    "composes": "needs weights, a network, GPUs or several machines: its config is read",
    "benchmark": "measures for minutes: its options are checked",
    "ci": "the continuous integration runs it: it stands in .ci/run",
}
RUN = ("bash", "python")
NOT_RUN = ("text", "yaml")  # output, and a file that a later command reads
DIRECTIVES = ("{toctree}", "{eval-rst}", "{literalinclude} second_recipe.py")
_FENCE = re.compile(
    r"^(?:<!-- test: (?P<mark>[\w-]+) -->\n)?"
    r"(?:^[^\n]*\bSave as `(?P<file>[^`]+)`:\n\n)?"
    r"^(?P<ticks>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=ticks)$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the file it is saved as, how it is checked."""

    language: str
    text: str
    file: str
    mark: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(
            match["language"].strip(),
            match["text"],
            match["file"] or "",
            match["mark"] or "",
            text.count("\n", 0, match.start("ticks")) + 1,
        )


def command(text: str) -> str:
    """Return a block of commands for an environment that is installed already."""
    text = re.sub(r"^pip install uv && ", "", text, flags=re.M)
    text = re.sub(r"^(uv sync|pip install|python -m venv|uv venv)\b.*\n", "", text, flags=re.M)
    return re.sub(r"\buv run (--group \w+ )?(python )?(?=main\.py|-m )", "python ", text)


def commands(text: str) -> list[list[str]]:
    """Split a block into the words of its commands, without comments."""
    lines = command(text).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def copy_project(folder: Path) -> None:
    """Make a folder with the project's main.py, in which the commands of the pages run."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "main.py", folder)  # Python finds modules beside the file, not the link
    made = shutil.ignore_patterns("__pycache__", "_build")
    for name in ("cfg", "recipes", "docs"):  # a page may add a file there
        shutil.copytree(ROOT / name, folder / name, ignore=made)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")

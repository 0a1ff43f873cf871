"""Writes config_reference.md from cfg/: every key, its default, its values and its meaning.

Defaults and meanings are those of the YAML files: a comment beside a key is its meaning. The
possible values are those of the typed options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distinf.diagnostics.placement import Placement
from distinf.options import Output, Report, Runtime
from distinf.session.slurm_script import SlurmJob
from distinf.typed_options import option_values

ROOT = Path(__file__).resolve().parents[2]
CFG = ROOT / "cfg"
PAGE = "config_reference.md"
# Groups in the order of the page, and what chooses among their files.
GROUPS = {
    "prognostic": "The model that steps the forecast.",
    "diagnostic": "The models that run on each state. `'diagnostic=[a,b]'` takes several; the keys "
    "of each are below `diagnostic.<name>`. Every diagnostic also has the keys of "
    "[placement](#placement).",
    "data": "Where initial conditions, or the states of an archive, come from.",
    "network": "The network that `recipe=train` trains ([Train a stand-in](training.md)).",
    "perturbation": "What makes the members of an ensemble different (`parameters.ensemble`).",
    "placement": "Keys of every diagnostic, `diagnostic.<name>.<key>`.",
    "output": "What is stored and how. The class is {py:class}`distinf.Output`.",
    "report": "The page about a run ([The report](report.md)): `report=html`, or `report=none` for "
    "none. The class is {py:class}`distinf.Report`.",
    "runtime": "Ranks, deadlines and what happens after errors. The class is "
    "{py:class}`distinf.Runtime`.",
    "slurm": "The batch script of a run ([Slurm](launchers/slurm.md)).",
}
TYPED: dict[str, Any] = {
    "placement": Placement,
    "output": Output,
    "report": Report,
    "runtime": Runtime,
    "slurm": SlurmJob,
}
# Keys that mean the same in all files.
COMMON = {
    "_target_": "the class or function that makes it",
    "model": "the class of Earth2Studio",
    "kind": "the data source of Earth2Studio",
}
_KEY = re.compile(
    r"(?P<indent> *)(?P<key>[\w]+):(?: +(?P<default>.*?))??(?:\s+# ?(?P<meaning>.+))?$"
)


@dataclass(frozen=True)
class Key:
    """One key of a YAML file; ``default`` is empty for a section."""

    name: str
    default: str
    meaning: str


def read(path: Path) -> tuple[str, list[str], list[Key]]:
    """Return what a file's first comment says, its defaults list, and its keys."""
    head: list[str] = []
    defaults: list[str] = []
    keys: list[Key] = []
    sections: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            if not line.startswith("# @package"):
                head.append(line.removeprefix("#").strip())
        elif line.startswith("  - "):
            defaults.append(line.removeprefix("  - "))
        elif match := _KEY.fullmatch(line):
            depth = len(match["indent"]) // 2
            sections[depth:] = [match["key"]]
            if match["key"] == "defaults" or (match["default"] is None and not match["meaning"]):
                continue
            meaning = match["meaning"] or COMMON.get(match["key"])
            if not meaning:
                raise ValueError(f"{path.relative_to(ROOT)}: {match['key']} has no comment")
            keys.append(Key(".".join(sections), match["default"] or "", meaning))
    return " ".join(head), defaults, keys


def table(keys: list[Key], prefix: str, values: dict[str, str] | None) -> Iterator[str]:
    """Yield the lines of a table; ``values``: what is possible for each key, where it is known."""
    cells = ["key", "default", *(["values"] if values else []), "meaning"]
    yield f"| {' | '.join(cells)} |"
    yield "|---" * len(cells) + "|"
    for key in keys:
        default = "required" if key.default == "???" else f"`{key.default}`"
        possible = [values[key.name]] if values else []
        row = [f"`{prefix}{key.name}`", default, *map(plain, possible), plain(key.meaning)]
        yield f"| {' | '.join(row)} |"
    yield ""


def config(path: Path) -> Iterator[str]:
    """Yield the section of one complete config."""
    head, defaults, keys = read(path)
    yield from (f"## {path.stem}", "", f"`--config-name={path.stem}`. {head}", "")
    yield from table(keys, "", None)
    chosen = [line.replace(": ", "=") for line in defaults if line != "_self_"]
    yield f"It chooses {', '.join(f'`{choice}`' for choice in chosen)}."
    yield ""


def group(name: str) -> Iterator[str]:
    """Yield the section of one group."""
    yield from (f"## {name}", "", GROUPS[name], "")
    files = sorted((CFG / name).glob("*.yaml"))
    for path in files:
        head, _, keys = read(path)
        if name in TYPED:
            yield from table(keys, f"{name}." if name != "placement" else "", values_of(name))
            continue
        yield from (f"### {name}={path.stem}", "")
        yield from ([f"{sentence(head)}", ""] if head else [])
        prefix = f"{name}.{path.stem}." if name == "diagnostic" else f"{name}."
        yield from table(keys, prefix, None)


def sentence(text: str) -> str:
    """End a comment as a sentence ends, and show a command in it as code."""
    text = re.sub(r"pip install '[^']+'", lambda match: f"`{match[0]}`", text)
    return text if text.endswith(".") else f"{text}."


def plain(text: str) -> str:
    """Escape what Markdown would take for markup, except code."""
    return re.sub(r"(`[^`]*`)|([<|*_\[\]])", lambda m: m[1] or f"\\{m[2]}", text)


def values_of(name: str) -> dict[str, str]:
    """Return the possible values of each key of a group of typed options."""
    return option_values(TYPED[name])


def reference() -> str:
    """Return the page."""
    lines = [
        "# Config reference",
        "",
        "This page is made from the files of `cfg/`. `python main.py --help` lists the groups, and "
        "`--cfg job` prints the config of a run. [Configuration](configuration.md) explains rules "
        "that need more than one line.",
        "",
    ]
    for path in sorted(CFG.glob("*.yaml"), key=lambda path: path.stem != "shallow_water"):
        lines += config(path)
    for name in GROUPS:
        lines += group(name)
    return "\n".join(lines)


def write(app: Any) -> None:
    """Write the page, unless it is as it should be: an unchanged file is not read again."""
    page, text = Path(app.srcdir) / PAGE, reference()
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call `write` before it looks for pages."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}

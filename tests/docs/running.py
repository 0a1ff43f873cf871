"""Run, or check as far as possible, each block of a page, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

import hydra

from distinf.loading.preflight import Declared
from recipes.shared.checks import read_run
from recipes.shared.cli import find_recipe
from testing.application import ROOT, finish, start
from testing.pages import DIRECTIVES, MARKS, NOT_RUN, RUN, Block, blocks, command, commands

DOCS = ROOT / "docs"
# The interpreter that runs the tests is the one whose `python` and `torchrun` are meant.
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "MPLBACKEND": "agg",
    # What a user who is not root and has enough cores need not say.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
DEADLINE = 300.0
_HELP = """
import contextlib, io, json, runpy, sys
for module in json.loads(sys.argv[1]):
    sys.argv, out = [module, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    print(json.dumps([module, out.getvalue()]))
"""


def path_of(page: str) -> Path:
    return ROOT / page if page == "README.md" else DOCS / page


def starts_processes(page: str) -> bool:
    """Whether a page has blocks that really run."""
    return any(block.language in RUN and not block.mark for block in blocks(path_of(page)))


def run_page(
    page: str,
    folder: Path,
    done: set[str],
    after: Callable[[str, Path, dict[str, str]], None] | None = None,
    **environment: str,
) -> str:
    """Run a page in a folder; return what was printed.

    ``done`` has the commands that ran there before; ``after`` is called with what a block printed.
    """
    printed = []
    measured: list[list[str]] = []
    for block in blocks(path_of(page)):
        where = f"{page}, line {block.line}"
        assert block.language in (*RUN, *NOT_RUN, *DIRECTIVES), f"{where}: {block.language}"
        assert not block.mark or block.mark in MARKS, f"{where}: {block.mark}"
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.language not in RUN or block.file:
            continue
        if block.mark == "composes":
            composes(block, folder, where)
        elif block.mark == "benchmark":
            measured += commands(block.text)
        elif block.mark == "ci":
            stands_in_ci(block, where)
        else:
            printed.append(run_block(block, folder, where, done, environment))
            if after is not None:
                after(printed[-1], folder, ENVIRONMENT | environment)
    have_options(measured, folder, page)
    return "".join(printed)


def run_block(
    block: Block, folder: Path, where: str, done: set[str], environment: dict[str, str]
) -> str:
    if block.language == "python":
        script = folder / f"line_{block.line}.py"
        script.write_text(block.text)
        words = [sys.executable, script.name]
    else:
        if (normal := repr(commands(block.text))) in done:
            return ""
        done.add(normal)
        words = ["bash", "-ec", command(block.text)]
    process = start(words, folder, **ENVIRONMENT | environment)
    outcome = finish(process, DEADLINE)
    assert outcome.status == 0, f"{where}:\n{block.text}\n{outcome.out}\n{outcome.err}"
    return outcome.out


def composes(block: Block, folder: Path, where: str) -> None:
    """Let Hydra compose the config of each run of main.py, and read every key and value."""
    runs = [words for words in commands(block.text) if "main.py" in words]
    assert runs, where
    for words in runs:
        given = words[words.index("main.py") + 1 :]
        options = [word for word in given if word.startswith("--")]
        overrides = [word for word in given if not word.startswith("--")]
        name = "shallow_water"
        for option in options:
            key, _, value = option.partition("=")
            assert key == "--config-name", f"{where}: {option}"
            name = value.removesuffix(".yaml")
        with hydra.initialize_config_dir(str(folder / "cfg"), version_base="1.3"):
            config = hydra.compose(name, overrides)
        with patch.object(Declared, "missing_extra", return_value=None):  # as if installed
            read_run(config)
        find_recipe(config)


def have_options(measured: Iterable[list[str]], folder: Path, page: str) -> None:
    """Check that each benchmark exists and has the options that a page gives it."""
    found = {words[2]: "" for words in measured}
    if not found:
        return
    for words in measured:
        assert words[:2] == ["python", "-m"], f"{page}: {words}"
    asked = subprocess.run(
        [sys.executable, "-c", _HELP, json.dumps(list(found))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    for line in asked.stdout.splitlines():
        module, said = json.loads(line)
        found[module] = said
    for _, _, module, *options in measured:
        names = re.findall(r"--[\w-]+", found[module])
        assert names, f"{page}: {module} says nothing"
        wrong = [o for o in options if o.startswith("--") and o not in names]
        assert not wrong, f"{page}: {module} has no {wrong}"


def stands_in_ci(block: Block, where: str) -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for words in commands(block.text):
        missing = [word for word in words if word not in script]
        assert not missing, f"{where}: .ci/run has no {missing}"


def pages() -> Iterator[str]:
    """Yield every page that is written by hand."""
    from config_reference import PAGE

    yield "README.md"
    for path in sorted(DOCS.rglob("*.md")):
        name = str(path.relative_to(DOCS))
        if not name.startswith("_build/") and name != PAGE:
            yield name

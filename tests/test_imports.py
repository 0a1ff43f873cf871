"""Who may import whom: tests and benchmarks share the package testing, and not one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(folder):
    """Top-level packages that the modules of a folder import, with the modules that do it."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(
    ("folder", "other"), [("benchmarks", "tests"), ("testing", "tests"), ("testing", "benchmarks")]
)
def test_a_folder_does_not_import_the_other(folder, other):
    assert imported(folder).get(other, set()) == set()


def test_only_tests_of_benchmarks_import_them():
    where = imported("tests")["benchmarks"]
    assert where == {"tests/benchmarks/test_scale.py"}

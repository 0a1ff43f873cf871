"""Recipes need distinf's public names only; tests/docs runs the second recipe."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import distinf
from distinf.typed_options import current_targets
from testing.application import ROOT
from testing.preloaded import run_main

FILES = [
    ROOT / "main.py",
    ROOT / "docs" / "second_recipe.py",
    *sorted((ROOT / "recipes").rglob("*.py")),
]
PAGE = (ROOT / "docs" / "second_recipe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_recipe_imports_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("distinf.")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distinf"):
            assert node.module == "distinf"
            assert {alias.name for alias in node.names} <= set(distinf.__all__)


def test_each_name_on_the_page_is_public_and_used() -> None:
    names = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    text = (ROOT / "docs" / "second_recipe.py").read_text(encoding="utf-8")
    assert len(names) == 8
    for name in names:
        assert name in distinf.__all__
        assert f"{name}(" in text


def test_an_old_name_of_a_target_works_and_the_new_one_is_said(tmp_path: Path) -> None:
    old, new = "distinf.fields.replay", "distinf.models.replay"
    assert current_targets({"_target_": old}) == ({"_target_": new}, {old: new})
    kept = {"_target_": "distinf.models.GalewskyJet"}
    assert current_targets(kept) == (kept, {})
    old = "prognostic._target_=distinf.fields.persistence"
    outcome = run_main(
        *("--config-name=diagnostic", "recipe=fetch", "runtime.nproc=1", "prognostic=persistence"),
        *("prognostic.variable=[u10m,v10m]", old, "diagnostic=wind_speed"),
        *("diagnostic.wind_speed.levels=[10m]", "data=random"),
        "data._target_=distinf.fields.RandomFields",
        folder=tmp_path,
    )
    assert outcome.status == 0, outcome.err
    said = [line for line in outcome.out.splitlines() if "is now called" in line]
    assert len(said) == 2
    assert "distinf.fields.persistence is now called distinf.models.persistence" in said[0]
    assert "distinf.fields.RandomFields is now called distinf.models.RandomFields" in said[1]

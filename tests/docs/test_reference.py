"""The reference pages have every key of cfg/ and every public name."""

import re
from pkgutil import resolve_name

import config_reference
import pytest
import yaml

import distinf
import distinf.models
from distinf.diagnostics.placement import Placement
from distinf.options import Output, Report, Runtime
from distinf.session.slurm_script import SlurmJob
from distinf.typed_options import option_names
from testing.application import ROOT
from tests.docs.running import pages, path_of

CFG = ROOT / "cfg"
FILES = sorted(CFG.rglob("*.yaml"))
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def prefix_of(path):
    group = path.parent.name
    if path.parent == CFG or group == "placement":
        return ""
    return f"diagnostic.{path.stem}." if group == "diagnostic" else f"{group}."


def keys_of(section, prefix):
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.fixture(scope="module")
def rows():
    """Return the cells of every row of a table: key, default, ..., meaning."""
    lines = [line for line in config_reference.reference().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CFG)))
def test_every_key_of_a_file_has_its_meaning(path, rows):
    section = yaml.safe_load(path.read_text(encoding="utf-8"))
    section.pop("defaults", None)
    keys = set(keys_of(section, prefix_of(path)))
    assert keys
    meanings = {cells[0].strip("`"): cells[-1] for cells in rows}
    assert {key for key in keys if len(meanings.get(key, "")) < 5} == set()


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (Runtime, "runtime."),
        (Output, "output."),
        (Report, "report."),
        (SlurmJob, "slurm."),
        (Placement, ""),
    ],
)
def test_every_typed_option_has_its_values(kind, prefix, rows):
    shown = {cells[0].strip("`"): cells for cells in rows if len(cells) == 4}
    for name in option_names(kind):
        assert len(shown[f"{prefix}{name}"][2]) > 3


def test_a_key_without_a_comment_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(config_reference, "ROOT", tmp_path)
    (tmp_path / "new.yaml").write_text("# A model\nsize: 3\n")
    with pytest.raises(ValueError, match=r"new\.yaml: size has no comment"):
        config_reference.read(tmp_path / "new.yaml")


def test_every_group_has_a_section():
    groups = {path.parent.name for path in FILES if path.parent != CFG}
    assert groups == set(config_reference.GROUPS)


def test_every_public_name_is_in_the_api_reference():
    names = re.findall(r"^\.\. auto\w+:: distinf\.([\w.]+)$", API, re.M)
    assert len(names) == len(set(names))
    public = {*distinf.__all__, *(f"models.{name}" for name in distinf.models.__all__)}
    others = {name for name in names if name.startswith(("forecast.", "loading.", "seeds."))}
    assert set(names) - others == public
    for name in others:
        assert resolve_name(f"distinf.{name}").__doc__


def test_pages_and_configs_use_names_of_the_api_reference_only():
    known = set(re.findall(r"^\.\. auto\w+:: distinf\.([\w.]+)$", API, re.M))
    for path in (*map(path_of, pages()), *FILES):
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"\bdistinf\.([a-z_]+\.\w+)", text))
        for module, names in re.findall(r"^from distinf\b\.?(\w*) import (.+)$", text, re.M):
            used |= {f"{module}.{name}".lstrip(".") for name in names.split(", ")}
        assert used <= known, path

"""Every file of the groups composes, and names a class of the installed Earth2Studio."""

from __future__ import annotations

import importlib
import importlib.util
import resource
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from distinf.diagnostics.placement import Placement, split
from distinf.errors import ConfigError
from distinf.loading.load import check_target, load_data, load_model
from testing import application

CFG = application.ROOT / "cfg"
MANDATORY = {
    "data=netcdf": ["data.paths=[u.nc]"],
    "data=file": ["data.path=x.nc"],
    "data=inference_output": ["data.inference_output=x.nc"],
    "prognostic=replay": ["prognostic.path=x.zarr"],
    "data=replayed": ["prognostic=replay", "prognostic.path=x.zarr"],
    "diagnostic=corrdiff": ["diagnostic.corrdiff.package=x"],
    "diagnostic=trained": ["diagnostic.trained.package=x"],
}
GROUPS = [
    f"{group}={path.stem}"
    for group in ("prognostic", "diagnostic", "data", "perturbation")
    for path in sorted((CFG / group).glob("*.yaml"))
]


def compose(choice: str) -> tuple[str, dict[str, Any]]:
    """Section that a file fills, and what is in it."""
    group, name = choice.split("=")
    # These take their grid from the shallow-water model.
    config = "shallow_water" if name in ("netcdf", "galewsky") else "diagnostic"
    with hydra.initialize_config_dir(str(CFG), version_base="1.3"):
        cfg = hydra.compose(config, [choice, *MANDATORY.get(choice, [])])
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if group == "diagnostic":
        assert list(plain[group]) == [name]
        return f"{group}.{name}", plain[group][name]
    return group, plain[group]


@pytest.mark.parametrize("choice", GROUPS)
def test_a_file_composes_and_its_class_is_there(choice: str, tmp_path: Path) -> None:
    where, settings = compose(choice)
    settings.pop("package", None)
    if where == "prognostic":
        for key in ("restartable", "ranks"):
            del settings[key]
    if where.startswith("diagnostic."):
        placement, settings = split(settings, where)
        assert placement == Placement()
    try:
        check_target(settings, where)
    except ConfigError as error:
        if "needs Earth2Studio's extra" not in str(error):
            raise
        extra = str(error).split("extra '")[1].split("'")[0]
        comment = (CFG / (choice.replace("=", "/") + ".yaml")).read_text().split("_target_")[0]
        assert f"earth2studio[{extra}]" in comment
    for dotted in (settings["_target_"], settings.get("model"), settings.get("kind")):
        if dotted is not None:
            module, _, name = dotted.rpartition(".")
            assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("choice", [g for g in GROUPS if "diagnostic" in g])
def test_the_files_of_a_group_compose_into_a_list(choice: str) -> None:
    name = choice.split("=")[1]
    with hydra.initialize_config_dir(str(CFG), version_base="1.3"):
        cfg = hydra.compose("diagnostic", [f"diagnostic=[identity,{name}]"])
    assert set(cfg.diagnostic) == {"identity", name}


def test_a_setting_that_a_model_does_not_take_is_refused() -> None:
    settings = {"model": "earth2studio.models.dx.CorrDiff", "packge": "x"}
    with pytest.raises(ConfigError, match=r"diagnostic\.c\.packge .*diagnostic\.c\.package\?"):
        check_target({"_target_": "distinf.loading.load_model", **settings}, "diagnostic.c")
    source = {"kind": "earth2studio.data.GFS", "cach": False}
    with pytest.raises(ConfigError, match=r"data\.cach does not exist.*data\.cache\?"):
        check_target({"_target_": "distinf.loading.load_data", **source}, "data")
    with pytest.raises(
        ConfigError, match=r"has no FCM.*Did you mean earth2studio\.models\.px\.FCN"
    ):
        load_model("earth2studio.models.px.FCM")


def test_a_missing_extra_is_named() -> None:
    pytest.importorskip("earth2studio")
    for loader, target, extra in (
        (load_model, "earth2studio.models.px.SFNO", "sfno"),
        (load_data, "earth2studio.data.CDS_ERA5", "data"),
    ):
        if importlib.util.find_spec({"sfno": "makani", "data": "cdsapi"}[extra]) is not None:
            pytest.skip(f"the extra {extra} is installed")
        with pytest.raises(ConfigError, match=rf"pip install 'earth2studio\[{extra}\]'"):
            loader(target)


@pytest.mark.parametrize("question", [("--cfg", "job"), ("--help",)])
def test_questions_about_the_config_are_answered_at_once(
    question: tuple[str, ...], tmp_path: Path
) -> None:
    command = application.python_main("--config-name=diagnostic.yaml", *question)
    before = cpu_seconds()
    done = application.run(command, tmp_path, deadline=60)
    assert done.status == 0, done.err
    assert "precip_afno" in done.out
    assert cpu_seconds() - before < 5  # importing a model takes longer on any machine


def cpu_seconds() -> float:
    """Seconds of CPU time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

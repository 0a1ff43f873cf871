from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distinf.loading.imports import import_first
from testing import application, packages, preloaded
from testing.preloaded import run_main

preloaded.MODULES.append("testing.earth2studio_models")

TIME = "2023-06-01T00:00:00"
# Without these a machine that reaches the network through a proxy would look as one without.
NO_PROXY = dict.fromkeys(
    ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), ""
)

Run = Callable[..., application.Outcome]


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """Import the models the quick way, before a test does it the slow one."""
    import_first("earth2studio.perturbation")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small packages, and ``fields``: a file with fields on the grid of GFS."""
    home = tmp_path_factory.mktemp("packages")
    return {
        "fcn": packages.fcn(home / "fcn"),
        "climatenet": packages.climatenet(home / "climatenet"),
        "wind_gust": packages.wind_gust(home / "wind_gust"),
        "corrdiff": packages.corrdiff(home / "corrdiff"),
        "fields": packages.fields_file(home / "fields.nc", [TIME]),
    }


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Caches of the test's own."""
    cache = str(tmp_path / "cache")
    return {"EARTH2STUDIO_CACHE": cache, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **NO_PROXY}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Run main.py with cfg/diagnostic.yaml, in a folder of its own."""

    def run(*overrides: str, deadline: float = 400) -> application.Outcome:
        config = "--config-name=diagnostic.yaml"
        return run_main(config, *overrides, folder=tmp_path, deadline=deadline, **environment)

    return run


@pytest.fixture
def run_at_once(tmp_path: Path, environment: dict[str, str]) -> Run:
    """As ``run``, in a process with all its imports: for deadlines that are promised."""

    def run(*overrides: str) -> application.Outcome:
        command = application.python_main("--config-name=diagnostic.yaml", *overrides)
        return application.run(command, tmp_path, **environment)

    return run

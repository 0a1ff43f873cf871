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
def run(tmp_path: Path) -> Run:
    """Run main.py with cfg/diagnostic.yaml, in a folder and with caches of its own."""

    def run(*overrides: str, deadline: float = 400) -> application.Outcome:
        cache = str(tmp_path / "cache")
        path = os.environ.get("PYTHONPATH", "")
        more = {"EARTH2STUDIO_CACHE": cache, "PYTHONPATH": path, **NO_PROXY}
        config = "--config-name=diagnostic.yaml"
        return run_main(config, *overrides, folder=tmp_path, deadline=deadline, **more)

    return run

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import packages

ROOT = Path(__file__).parents[2]
TIME = "2023-06-01T00:00:00"

Run = Callable[..., subprocess.CompletedProcess[str]]


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
    """Run main.py in a folder of its own, with caches of its own, and a deadline."""

    def run(*overrides: str, deadline: float = 180) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "EARTH2STUDIO_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "http_proxy", "HTTP_PROXY"):
            env.pop(name, None)
        return subprocess.run(
            [sys.executable, str(ROOT / "main.py"), "--config-name=diagnostic.yaml", *overrides],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=deadline,
        )

    return run

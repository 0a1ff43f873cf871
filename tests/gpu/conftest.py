"""Tests that need a GPU; one is enough, its ranks then share it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from testing import application
from tests.ranks.conftest import TORCHRUN, leaving_nothing

APP = Path(__file__).parent / "apps" / "gpu.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run one case of the application, and return what it told; the same run is made once."""

    @functools.cache
    def run(
        case: str,
        nproc: int = 2,
        carrier: str = "host",
        results: str = "host",
        torchrun: bool = False,
        **variables: str,
    ) -> dict[str, Any]:
        launcher = (*TORCHRUN, f"--nproc-per-node={nproc}") if torchrun else ()
        own = 0 if torchrun else nproc
        line = [sys.executable, *launcher, str(APP), case, str(own), carrier, results]
        with leaving_nothing() as environment:
            process = application.start(
                line, tmp_path_factory.mktemp("gpu"), **environment, **variables
            )
            outcome = application.finish(process, 300.0)
        assert outcome.status == 0, outcome.err
        told = [json.loads(text) for text in outcome.out.splitlines() if text.startswith("{")]
        return {**told[-1], "stderr": outcome.err}

    return run

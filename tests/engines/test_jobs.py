"""Whole jobs on Ray: the stores have the same bytes as those of tensorpipe."""

from __future__ import annotations

import pytest

from testing import packages
from testing.preloaded import run_main
from tests.engines.conftest import OnRay
from tests.launchers.conftest import STORE, TINY, alone, chunks

__all__ = ["alone"]  # a fixture

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]
TIME = "2023-06-01T00:00:00"


def test_the_main_job(on_cluster: OnRay, alone: dict[str, bytes]) -> None:
    words = ("--config-name=shallow_water", *TINY, *on_cluster.engine)
    done = run_main(
        *words,
        "runtime.workers=3",
        folder=on_cluster.folder,
        **on_cluster.environment,
    )
    assert done.status == 0, done.err
    assert chunks(on_cluster.folder / STORE) == alone


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """FourCastNet, then ClimateNet, with seeded weights."""
    home = tmp_path_factory.mktemp("packages")
    return [
        "--config-name=diagnostic",
        f"prognostic.package={packages.fcn(home / 'fcn')}",
        "diagnostic=climatenet",
        f"diagnostic.climatenet.package={packages.climatenet(home / 'climatenet')}",
        "data=file",
        f"data.path={packages.fields_file(home / 'fields.nc', [TIME])}",
        "parameters.nsteps=2",
    ]


@pytest.fixture(scope="module")
def on_ranks(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunks of a run on one worker, by tensorpipe."""
    folder = tmp_path_factory.mktemp("on-ranks")
    done = run_main(*models, "runtime.nproc=2", folder=folder, EARTH2STUDIO_CACHE=str(folder))
    assert done.status == 0, done.err
    found = chunks(folder / "diagnostic_distributed.zarr")
    assert found
    return found


def test_models_of_earth2studio(
    on_cluster: OnRay, models: list[str], on_ranks: dict[str, bytes]
) -> None:
    words = (*models, *on_cluster.engine, "runtime.workers=3")
    environment = {**on_cluster.environment, "EARTH2STUDIO_CACHE": str(on_cluster.folder)}
    done = run_main(*words, folder=on_cluster.folder, **environment)
    assert done.status == 0, done.err
    assert chunks(on_cluster.folder / "diagnostic_distributed.zarr") == on_ranks

"""Packages: one fetch and one unpacking a node, and one clear error where there is none."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from distinf.errors import ConfigError
from distinf.loading.imports import import_first
from distinf.loading.load import load_model
from distinf.loading.packages import NodePackage
from distinf.loading.preflight import unreachable

CLIMATENET = "earth2studio.models.dx.ClimateNet"


def load_at_once(folder: str, barrier: Any, outcomes: Any) -> None:
    import_first(CLIMATENET)  # it takes longer than the loading
    barrier.wait(200)
    try:
        for _ in range(3):
            load_model(CLIMATENET, folder)
        outcomes.put("loaded")
    except BaseException as error:
        outcomes.put(repr(error))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_load_one_zipped_package(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARTH2STUDIO_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(made["climatenet"] / "climatenet.zip", package)
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.Queue()
    ranks = [
        context.Process(target=load_at_once, args=(str(package), barrier, outcomes))
        for _ in range(2)
    ]
    for rank in ranks:
        rank.start()
    assert [outcomes.get(timeout=300) for _ in ranks] == ["loaded", "loaded"]
    for rank in ranks:
        rank.join(30)
    assert os.listdir(package) == ["climatenet.zip"]  # nothing was written into it
    (unpacked,) = (tmp_path / "cache" / "unpacked").iterdir()
    assert sorted(os.listdir(unpacked)) == ["climatenet", "climatenet.zip"]


def test_a_changed_zip_file_is_unpacked_again(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earth2studio.models.auto import Package

    monkeypatch.setenv("EARTH2STUDIO_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.copy(made["climatenet"] / "climatenet.zip", tmp_path))
    package = NodePackage(Package(str(tmp_path)))
    first = package.resolve("climatenet.zip")
    assert package.resolve("climatenet.zip") == first
    os.utime(archive, (1, 1))
    assert package.resolve("climatenet.zip") != first
    archive.write_bytes(b"cut short")
    with pytest.raises(ConfigError, match=r"climatenet\.zip is damaged"):
        package.resolve("climatenet.zip")


def test_a_file_that_two_ranks_fetch_is_fetched_once(tmp_path: Path) -> None:
    from earth2studio.models.auto import Package

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights").write_bytes(b"1")
    options = {"cache_storage": str(tmp_path / "cache"), "same_names": True}
    one, other = (
        NodePackage(Package(str(tmp_path / "there"), cache=True, cache_options=options))
        for _ in range(2)
    )
    path = Path(one.resolve("weights"))
    assert path.parent == tmp_path / "cache"
    (tmp_path / "there" / "weights").unlink()
    assert other.resolve("weights") == str(path)


def test_a_folder_that_is_not_a_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"the folder {tmp_path}/none does not exist"):
        load_model(CLIMATENET, str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match=rf"package {tmp_path} is not a package of ClimateNet.*\.zip"
    ):
        load_model(CLIMATENET, str(tmp_path))


def test_a_model_without_a_default_package_asks_for_one() -> None:
    with pytest.raises(ConfigError, match="CorrDiff has no default package: name one, package="):
        load_model("earth2studio.models.dx.CorrDiff")


def test_an_error_of_the_network_is_recognised() -> None:
    import aiohttp

    wrapped = RuntimeError("while loading")
    wrapped.__cause__ = aiohttp.ClientConnectionError("no route to host")
    assert unreachable(wrapped) == "no route to host"
    assert unreachable(ConnectionRefusedError("refused")) == "refused"
    assert unreachable(ValueError("a shape does not fit")) is None

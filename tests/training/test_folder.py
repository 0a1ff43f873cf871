"""Which folders a training replaces or goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from distinf.errors import StoreError
from distinf.training import check_package, read_training
from distinf.training.folder import clear_package

PACKAGE = '{"version": 1, "inputs": {}, "targets": {}, "lat": [], "lon": []}'
KILLED = (".distinf.lock", "checkpoints/part/x", "checkpoints/epoch_000003/x", "part.network.mdlus")
KILLED += ("tensorboard/x", "mlflow.db", "mlflow.db-journal", "learning_curve.png")


def fill(folder: Path, *names: str, package: str | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if package is not None:
        (folder / "package.json").write_text(package)
    return folder


def check(folder: Path, mode: str) -> None:
    data = {"path": "in.zarr", "inputs": "u", "target": "v", "held_out": "2023-06-04"}
    run = read_training(
        {
            "parameters": {"output_path": str(folder)},
            "data": data,
            "network": {"_target_": "physicsnemo.models.fno.FNO"},
            "output": {"mode": mode},
        }
    )
    check_package(run, {})


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize(
    ("names", "package", "found"),
    [
        (["model.ckpt"], None, "model.ckpt"),
        (["checkpoints/epoch=3.ckpt"], None, "checkpoints/epoch=3.ckpt"),
        (["checkpoints/epoch_000003/x", "train.py"], None, "train.py"),
        (["tensorboard/x"], None, "tensorboard"),
        (["mlflow.db"], None, "mlflow.db"),
        ([], '{"name": "page", "dependencies": {}}', "package.json"),
        ([], "[]", "package.json"),
        ([], "", "package.json"),
        (["notes.txt"], PACKAGE, "notes.txt"),
    ],
)
def test_what_is_not_a_package_s_is_refused(
    tmp_path: Path, mode: str, names: list[str], package: str | None, found: str
) -> None:
    fill(tmp_path, *names, package=package)
    with pytest.raises(StoreError, match=f"is no package of distinf; it holds {found}$"):
        check(tmp_path, mode)


def test_what_a_killed_training_left_is_taken_and_cleared(tmp_path: Path) -> None:
    for part in range(len(KILLED)):
        folder = fill(tmp_path / str(part), *KILLED[: part + 1])
        check(folder, "resume")
        clear_package(folder)
        assert [path.name for path in folder.iterdir()] == [".distinf.lock"]
        check(folder, "create")
    package = fill(tmp_path / "whole", "checkpoints/epoch_000003/x", package=PACKAGE)
    check(package, "overwrite")
    with pytest.raises(StoreError, match=r"choose another parameters\.output_path"):
        check(package, "create")

"""Models over the ranks of a group against the same models on one rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_harmonics

from distinf.models import transforms
from testing import application

APP = Path(__file__).parent / "apps" / "groups.py"
# Of a run that takes 10 to 20 s where nothing else runs.
DEADLINE = 300.0
# Largest differences that were seen, after three steps: 4.2e-7 of the largest wind, 6.5e-7 of the
# range of the geopotential (a unit in the last place of its values), 3.5e-7 of a decomposition.
TOLERANCE = 2e-6

Arrays = dict[str, Any]


def run(folder: Path, *what: str) -> Path:
    command = [sys.executable, str(APP), str(folder), *what]
    outcome = application.run(command, folder, DEADLINE, OMP_NUM_THREADS="1")
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("two"), "2")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("more"), "others", "3", "4")


SIZES = [
    pytest.param("two", 2, marks=pytest.mark.slow),
    # Three do not divide the orders, the rows and the columns; four do not divide the orders.
    pytest.param("more", 3, marks=pytest.mark.slow),
    pytest.param("more", 4, marks=pytest.mark.slow),
]


def load(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("fixture", "size"), SIZES)
def test_a_group_agrees_with_one_rank(
    fixture: str, size: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    one, group = load(folder / "1.npz"), load(folder / f"{size}-0-0.npz")
    worst: dict[str, float] = {}
    for name, field in one.items():
        kind = "decomposition"
        scale = np.abs(field).max()
        if "step" in name:
            kind = "geopotential" if name[0] == "z" else "wind"
            step = name[1:]
            scale = np.ptp(field) if name[0] == "z" else np.abs(one["u" + step]).max()
        worst[kind] = max(worst.get(kind, 0), np.abs(group[name] - field).max() / scale)
    print(", ".join(f"{kind} {value:.2g}" for kind, value in worst.items()))
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.parametrize(("fixture", "size"), SIZES)
def test_bytes_are_the_same_on_all_ranks_and_in_two_runs(
    fixture: str, size: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    first = load(folder / f"{size}-0-0.npz")
    for again in range(2):
        for rank in range(size):
            found = load(folder / f"{size}-{again}-{rank}.npz")
            assert found.pop("logged") == (rank == 0)  # that the time step is shortened
            for name, array in found.items():
                assert array.tobytes() == first[name].tobytes(), (again, rank, name)


@pytest.mark.slow
def test_a_group_of_one_rank_is_no_group(more: Path) -> None:
    one = load(more / "1.npz")
    for rank in range(2):
        found = load(more / f"alone-{rank}.npz")
        assert all(found[name].tobytes() == array.tobytes() for name, array in one.items())


@pytest.mark.slow
def test_what_a_group_cannot_do_is_refused(more: Path) -> None:
    found = load(more / "alone-1.npz")
    assert "this rank is not in the process group" in str(found["outside"])
    assert "must span the same group" in str(found["beside"])
    assert "lmax=3 is too small for a group of 2 ranks" in str(found["small model"])
    assert "lmax=3 is too small for a group of 2 ranks" in str(found["small grid"])


@pytest.mark.parametrize("elements", [1, 1500, 2**23])
@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss"])
@pytest.mark.parametrize(
    "kind", ["RealSHT", "RealVectorSHT", "InverseRealSHT", "InverseRealVectorSHT"]
)
def test_transforms_are_those_of_torch_harmonics(
    kind: transforms.Kind, grid: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many orders are made at once."""
    monkeypatch.setattr(transforms, "_ELEMENTS", elements)
    ours = transforms.make_transform(kind, 33, 64, 16, grid)
    theirs = getattr(torch_harmonics, kind)(33, 64, 16, 16, grid=grid, csphase=False).float()
    shape = (33, 64) if kind.startswith("Real") else (16, 16)
    x = torch.randn(2, *shape, dtype=torch.float32 if shape[0] == 33 else torch.complex64)
    assert torch.equal(ours(x), theirs(x))
    public = {name: value for name, value in vars(theirs).items() if name[0] != "_"}
    assert {name: vars(ours)[name] for name in public} == public
    for name, buffer in theirs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)
        assert ours.get_buffer(name).is_contiguous()

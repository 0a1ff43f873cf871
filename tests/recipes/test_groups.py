"""Models over several ranks in a run of main.py, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from distinf import ConfigError, GroupSizes
from testing.application import SMALL
from testing.preloaded import run_main

RUN = (*SMALL, "parameters.nsteps=3", "diagnostic=wind_decomposition")
TOGETHER = ("prognostic.ranks=2", "diagnostic.wind_decomposition.ranks=2")
SIZES = st.integers(1, 8)


@given(SIZES, SIZES, st.integers(0, 5))
def test_every_rank_is_in_one_group(prognostic: int, diagnostic: int, replicas: int) -> None:
    sizes = GroupSizes(prognostic, diagnostic)
    world = prognostic + replicas * diagnostic
    first, *others = sizes.groups(world)
    assert [rank for group in (first, *others) for rank in group] == list(range(world))
    assert len(first) == prognostic
    assert [len(group) for group in others] == [diagnostic] * replicas


@given(SIZES, SIZES, st.integers(1, 40))
def test_ranks_that_do_not_fit_are_refused_with_numbers_that_do(
    prognostic: int, diagnostic: int, world: int
) -> None:
    sizes = GroupSizes(prognostic, diagnostic)
    fits = world >= prognostic + diagnostic and (world - prognostic) % diagnostic == 0
    if fits or not sizes.any:
        sizes.check(world)
        return
    with pytest.raises(ConfigError, match=r"ranks.*start") as error:
        sizes.check(world)
    for word in str(error.value).rpartition("start ")[2].split(" or "):
        if word.isdigit():
            sizes.check(int(word))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prognostic.ranks=0",), "prognostic.ranks=0: must be a whole number, at least 1"),
        (("diagnostic.wind_decomposition.ranks=two",), "must be a whole number, at least 1"),
        ((*TOGETHER, "runtime.nproc=1"), "there are 1: start more"),
        ((*TOGETHER, "runtime.nproc=5"), "does not divide the 3 ranks"),
        ((*TOGETHER, "runtime.nproc=4", "runtime.drivers=2"), "runtime.drivers=2"),
        ((*TOGETHER, "diagnostic.wind_decomposition.precision=bfloat16"), "precision=bfloat16"),
        (
            ("diagnostic=[wind_decomposition,identity]", TOGETHER[1]),
            "diagnostic.wind_decomposition.ranks=2, diagnostic.identity.ranks=1: all diagnostics",
        ),
        (
            ("diagnostic=error_growth", "diagnostic.error_growth.ranks=2"),
            "diagnostic.error_growth.ranks=2: ErrorGrowth runs on one rank",
        ),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    outcome = run_main(*RUN, *words, folder=tmp_path)
    assert outcome.status == 1
    assert said in outcome.err
    assert not (tmp_path / "shallow_water.zarr").exists()


def stored(folder: Path) -> xr.Dataset:
    with xr.open_zarr(folder / "shallow_water.zarr") as store:
        return store.load()


@pytest.mark.slow
def test_a_forecast_over_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    for name, words in (
        ("one", ("runtime.nproc=1",)),
        ("two", (*TOGETHER, "runtime.nproc=6")),
        ("again", (*TOGETHER, "runtime.nproc=4")),
    ):
        (tmp_path / name).mkdir()
        outcome = run_main(*RUN, *words, folder=tmp_path / name)
        assert outcome.status == 0, outcome.err
    one, two, again = (stored(tmp_path / name) for name in ("one", "two", "again"))
    assert two.wind_decomposition_complete.all()
    assert two.equals(again)
    for name in ("vo850", "strf850"):
        scale = float(np.abs(one[name]).max())
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5 * scale)
    words = ("output.mode=resume", "parameters.nsteps=4", "runtime.nproc=2")
    outcome = run_main(*RUN, *words, folder=tmp_path / "two")
    assert outcome.status == 1
    assert "prognostic.ranks: the store has 2, this run 1" in outcome.err

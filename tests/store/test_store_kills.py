"""A run that is killed at any moment: what a reader then sees, and what the next run makes of it.

While a store is written, every change of a file or folder in it is intercepted, and the folder is
copied as it is just before: what a run leaves that is killed there.
"""

import contextlib
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from distinf.store.contents import CREATING
from tests.store.test_forecast_store import grid, look
from tests.store.test_resume import fill, leads, run

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")


class Moments:
    """Copies of a folder from just before each change in it, each state once."""

    def __init__(self, folder, copies):
        self.folder, self.copies = Path(folder), Path(copies)
        self.found = []
        self._seen = set()
        self._on = False
        self._turn = threading.Lock()
        self._own = threading.local()
        sys.addaudithook(self._hear)  # stays for the process, but does nothing after the block

    def _hear(self, event, args):
        if not self._on or getattr(self._own, "copying", False):
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & 0o3
        if not (writes or event in CHANGES) or not str(args[0]).startswith(str(self.folder)):
            return
        with self._turn:
            self._own.copying = True
            try:
                self.take()
            finally:
                self._own.copying = False

    def take(self):
        copy = self.copies / f"{len(self.found):04d}"
        if self.folder.exists():
            # Threads write side by side: a file may go while the folder is copied.
            with contextlib.suppress(shutil.Error):
                shutil.copytree(self.folder, copy)
        below = sorted(copy.rglob("*"))
        state = tuple((p.relative_to(copy), p.is_file() and p.read_bytes()) for p in below)
        if state in self._seen:
            shutil.rmtree(copy, ignore_errors=True)
        else:
            self._seen.add(state)
            self.found.append(copy)

    def find(self, every):
        """Return every so many-th copy, and the last one."""
        return [*self.found[:-1:every], self.found[-1]]

    @contextlib.contextmanager
    def watched(self):
        self._on = True
        try:
            yield
        finally:
            self._on = False
        self.take()


@pytest.fixture
def moments(tmp_path):
    (tmp_path / "copies").mkdir()
    return Moments(tmp_path / "forecast.zarr", tmp_path / "copies")


def values(path):
    there = look(path)
    return {name: there[name].values.tobytes() for name in there.variables}


EACH = {None: 1, 2: 3}  # with shards each third moment: most are those of single files
BOTH = {"rain": grid("tp"), "prognostic": grid("u850", "z850", nlat=2)}


@pytest.mark.slow
@pytest.mark.parametrize("shards", [None, 2])
def test_a_run_killed_while_it_makes_room_for_more_steps(moments, shards):
    path = moments.folder
    with run(path, "create", BOTH, nsteps=1, shards=shards) as store:
        fill(store, BOTH, nsteps=1)
    short = values(path)
    with moments.watched():
        run(path, diagnostics=BOTH, nsteps=3, shards=shards).close()
    assert len(moments.found) > 10  # one for each array at least
    with run(path, diagnostics=BOTH, nsteps=3, shards=shards) as store:
        fill(store, BOTH, nsteps=3)
    long = values(path)
    seen = set()
    for copy in moments.find(EACH[shards]):
        there = look(copy)
        size = there.sizes["lead_time"]
        seen.add(size)
        np.testing.assert_array_equal(there["lead_time"], leads(size - 1))
        assert there["tp"][:, :2].notnull().all()
        assert there["rain_complete"].sum() == 4
        again = copy.with_name(copy.name + ".again")
        shutil.copytree(copy, again)
        with run(copy, diagnostics=BOTH, nsteps=3, shards=shards) as store:
            fill(store, BOTH, nsteps=3)
        assert values(copy) == long
        if size == 2:  # or the run with fewer steps goes on
            with run(again, diagnostics=BOTH, nsteps=1, shards=shards) as store:
                assert store.marks.counts == (8, 8)
            assert values(again) == short
    assert seen == {2, 4}


@pytest.mark.slow
@pytest.mark.parametrize("shards", [None, 2])
def test_a_run_killed_at_any_moment_of_a_short_run(moments, shards):
    path = moments.folder
    with moments.watched(), run(path, "create", BOTH, nsteps=1, shards=shards) as store:
        fill(store, BOTH, nsteps=1)
    whole = values(path)
    complete = []
    for copy in moments.find(EACH[shards]):
        if not copy.exists():  # before the folder was made
            continue
        if (copy / "zarr.json").exists() and not (copy / CREATING).exists():
            there = look(copy)
            for name, variables in (("rain", ("tp",)), ("prognostic", ("u850", "z850"))):
                done = there[f"{name}_complete"]
                for variable in variables:  # what is marked is there
                    assert there[variable].where(done, 0.0).notnull().all()
            complete.append(int(there["rain_complete"].sum()))
        with run(copy, diagnostics=BOTH, nsteps=1, shards=shards) as store:
            fill(store, BOTH, nsteps=1)
        assert values(copy) == whole
    assert complete == sorted(complete)
    assert complete[0] == 0
    assert complete[-1] == 4


@pytest.mark.slow
def test_a_run_killed_while_it_replaces_a_store(moments):
    path = moments.folder
    with run(path, "create", BOTH) as store:
        fill(store, BOTH)
    new = {"wind": grid("gust")}
    with moments.watched(), run(path, "overwrite", new) as store:
        fill(store, new)
    whole = values(path)
    for copy in moments.found:
        with run(copy, "overwrite", new) as store:
            fill(store, new)
        assert values(copy) == whole

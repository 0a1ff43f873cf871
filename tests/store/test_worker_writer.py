"""Workers that write: the same bytes, marked by the driver, in the driver's store only."""

import dataclasses
from concurrent.futures import Future

import pytest

from distinf.errors import ConfigError, StateLost, StoreError, TaskError
from distinf.pipeline import let_workers_write
from distinf.report import Events
from distinf.session.session import session
from distinf.store import RemoteWriter
from tests.store.test_forecast_store import DIAGNOSTICS, open_store, result


class Rank:
    """What the store asks a chain for, in this process."""

    def set_up(self, arguments):
        self.arguments = arguments
        name, *args = arguments(0)
        assert name == "write_to"
        self.writer = RemoteWriter(*args)


@pytest.fixture(scope="module", autouse=True)
def opened():
    with session():
        yield


def written(rank, name, *step):
    future = Future()
    future.set_result(rank.writer.write({name: result(DIAGNOSTICS[name], *step).result()}))
    return future


def chunks(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("c/**/*") if p.is_file()}


def test_the_bytes_are_those_that_the_driver_writes(tmp_path):
    rank = Rank()
    with open_store(tmp_path / "w.zarr") as store, open_store(tmp_path / "d.zarr") as other:
        with let_workers_write(store, [rank]):
            pass
        for step in ((0, 1), (1, 0)):
            other.write("wind", result(DIAGNOSTICS["wind"], *step))
            store.write("wind", written(rank, "wind", *step))
    assert chunks(tmp_path / "w.zarr") == chunks(tmp_path / "d.zarr")
    assert not list((tmp_path / "w.zarr").glob(".distinf.meeting*"))


def test_a_worker_that_joins_meanwhile_writes_too(tmp_path):
    rank = Rank()
    with open_store(tmp_path / "w.zarr") as store:
        with let_workers_write(store, [rank]):
            joined = RemoteWriter(*rank.arguments(1)[1:])
        assert list(joined.write({"rain": result(DIAGNOSTICS["rain"], 0, 0).result()})) == ["rain"]
        with pytest.raises(ConfigError, match="does not reach"):
            RemoteWriter(*rank.arguments(2)[1:])


def test_a_step_is_complete_once_the_driver_has_marked_it(tmp_path):
    rank = Rank()
    with open_store(tmp_path / "w.zarr") as store:
        with let_workers_write(store, [rank]):
            pass
        future = written(rank, "rain", 0, 0)
        assert store.marks.counts[0] == 0
        store.write("rain", future)
    assert store.marks.counts[0] == 1


def test_what_is_complete_is_not_written_again(tmp_path):
    with open_store(tmp_path / "w.zarr") as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
    rank = Rank()
    with open_store(tmp_path / "w.zarr", "resume") as store:
        with let_workers_write(store, [rank]):
            pass
        assert written(rank, "rain", 0, 0).result() == {}
        assert list(written(rank, "rain", 0, 1).result()) == ["rain"]


@pytest.mark.parametrize("there", ["nothing", "another store"])
def test_a_rank_that_does_not_see_the_store_says_so(tmp_path, there):
    open_store(tmp_path / "other.zarr").close()
    where = tmp_path / ("other.zarr" if there == "another store" else "none.zarr")
    with (
        open_store(tmp_path / "w.zarr") as store,
        store.writer_ticket() as ticket,
        pytest.raises(ConfigError, match=r"does not reach .*\.zarr .*output\.writer=driver"),
    ):
        RemoteWriter(dataclasses.replace(ticket, path=str(where)), 1)


def test_a_write_that_fails_ends_the_run_even_if_errors_are_skipped(tmp_path):
    failed = Future()
    failed.set_exception(
        TaskError(
            what="writing",
            task="rain",
            rank=1,
            host="n1",
            attempt=1,
            kind=StoreError.__name__,
            message="No space left",
            remote_traceback="",
        )
    )
    store = open_store(tmp_path / "w.zarr", skip_errors=True)
    store.write("rain", failed)
    with pytest.raises(TaskError, match="No space left"):
        store.close()


def test_a_step_that_two_ranks_have_written_counts_once(tmp_path):
    """As when a driver was lost after its worker had written."""
    events = Events()
    (name, coords), *_ = DIAGNOSTICS.items()
    with open_store(tmp_path / "w.zarr", events=events) as store, store.writer_ticket() as ticket:
        written = result(coords, 0, 1).result()
        for writer in [RemoteWriter(ticket, rank) for rank in (1, 2)]:
            future = Future()
            future.set_result(writer.write({name: written}))
            store.write(name, future)
            store.drain()
        lost = Future()
        lost.set_exception(StateLost("its driver"))
        store.write(name, lost)
        store.drain()
        assert store.marks.counts[0] == 1
    assert [(event.kind, event.rank) for event in events] == [("write", 1)]
    assert store.skipped == []

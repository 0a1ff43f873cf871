"""DistributedInference: one diagnostic model on every worker, called like an executor.

::

    prognostic --submit--> selection --> farm (dispatch) --> transport --> worker.forward
                                                                              |
    your code <--Future-- farm <-------------- transport <---- envelope ------+
"""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from distinf.coords import Coords, step_words
from distinf.errors import ConfigError, SessionError
from distinf.farm import Farm
from distinf.gpu import record_event
from distinf.inference.arguments import Arguments
from distinf.inference.earth2studio_names import QueuedCalls
from distinf.session import close_session, current_session, open_session
from distinf.tensors import tensor_bytes
from distinf.transport import Call, Remote


class DistributedInference:
    """A diagnostic model, resident on the session's workers.

    Parameters
    ----------
    model : Callable[..., Any]
        Class of the model, or any importable callable that returns one. Instances have
        ``forward``; Earth2Studio's diagnostics are called as they are.
    *args : Any
        Its arguments.
    remote_ranks : list[int] | int | None, optional
        Ranks that hold it, by default None: every worker. Where workers may join, those that are
        not there yet get it when they are.
    **kwargs : Any
        Its keyword arguments.

    Raises
    ------
    SessionError
        If no session is open on this rank.
    TaskError
        If the model could not be constructed on one of the ranks.

    Notes
    -----
    In a session of one process the model lives in this process, and calls run as they are
    made. The first error of a model breaks the session: whoever waits in it gets that error.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        remote_ranks: list[int] | int | None = None,
        **kwargs: Any,
    ) -> None:
        session = current_session()
        self._farm: Farm = session.farm
        wanted = [remote_ranks] if isinstance(remote_ranks, int) else remote_ranks
        unknown = set(wanted or ()) - set(self._farm.places)
        if unknown:
            raise ConfigError(
                f"remote_ranks: {sorted(unknown)} are no workers; "
                f"the workers are {list(self._farm.places)}"
            )
        self.name = getattr(model, "__name__", type(model).__name__)
        self._ranks = frozenset(wanted) if wanted is not None else None
        self._number = self._farm.new_model()
        self._running = itertools.count()
        self._closed = False
        self._queued = QueuedCalls(self.submit, self._farm.check)
        task = f"{self.name} construction"
        build = Call(self._number, "__build__", task, (model, *args), kwargs)
        try:
            found = self._farm.set_up(self._number, lambda rank: build, self._ranks)
        except BaseException:
            self._farm.forget(self._number)
            raise
        self._methods: set[str] = set.union(*self._some(found))
        needed: Coords | None = None
        if "input_coords" in self._methods:
            needed = self.call_func("input_coords", rank=self._holders()[0])
        self._arguments = Arguments(self.name, needed, self._farm.transport)

    @staticmethod
    def initialize() -> None:
        """Open a session on this rank; every rank calls it."""
        open_session()

    @staticmethod
    def finalize() -> None:
        """Close the session; a worker serves here until rank 0 gets here, too."""
        close_session()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Queue a call of ``forward``; its result comes out of :meth:`results`.

        Blocks until a worker is free. Raises as :meth:`submit`.
        """
        self._queued.put(*args, **kwargs)

    def results(self) -> Iterator[Any]:
        """Yield results of queued calls as they come, until :meth:`wait` has seen the last.

        Unread results are kept. Raises `TaskError` if a queued call failed, `SessionError` if the
        session broke.
        """
        return self._queued.results()

    def wait(self) -> None:
        """Wait until every queued call is done, whether or not anyone reads :meth:`results`.

        Raises `TaskError` if a queued call failed.
        """
        self._queued.wait()

    @property
    def remote_ranks(self) -> list[int]:
        """Ranks of the workers that are there and hold the model, ascending."""
        return [r for r in self._farm.workers if self._ranks is None or r in self._ranks]

    def output_coords(self, coords: Coords) -> Coords:
        """Return the model's ``output_coords`` for a state with these coords.

        Raises `ConfigError` if the state lacks variables that the model needs.
        """
        selected = self._arguments.expect(coords)
        result: Coords = self.call_func("output_coords", selected, rank=self._holders()[0])
        return result

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of the result's variables, if the model has them."""
        if "variable_attributes" not in self._methods:
            return {}
        found: dict[str, dict[str, str]] = self.call_func(
            "variable_attributes", rank=self._holders()[0]
        )
        return found

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the model's ``forward`` on the next free worker.

        Blocks while all workers are full. The arguments may be changed as soon as it returns.

        Parameters
        ----------
        *args : Any
            Arguments of ``forward``; usually a tensor ``x`` and its coords. If the model has
            ``input_coords()``, only those variables and that region of ``x`` are sent.
        **kwargs : Any
            Keyword arguments of ``forward``.

        Returns
        -------
        Future
            What ``forward`` returns, complete, with tensors on the host, or with
            ``runtime.results=device`` on this rank's device. Raises `TaskError` when it raised,
            `TaskLost` when ``runtime.max_attempts`` workers were lost during the call, and
            `SessionError` when no worker is left.

        Raises
        ------
        SessionError
            If this object or the session is closed, or no worker is left.
        ConfigError
            If ``x`` lacks variables that the model needs.
        TaskError
            If an earlier task broke the session.
        """
        self._check_open()
        number = next(self._running)
        words = next((step_words(arg) for arg in args[:2] if isinstance(arg, dict)), "")
        task = f"{self.name}{words or f' task {number}'}"
        args, kwargs = self._arguments.own(args, kwargs)
        ready = record_event((args, kwargs))
        call = Call(self._number, "__forward__", task, args, kwargs, ready)
        nbytes = args[0].nbytes if args and isinstance(args[0], Remote) else 0
        return self._farm.submit(call, nbytes + tensor_bytes((args, kwargs)), self._ranks)

    def map(
        self, *iterables: Iterable[Any], buffersize: int | None = None, unordered: bool = False
    ) -> Iterator[Any]:
        """Run ``forward`` on the items of iterables, one for each argument; as :meth:`starmap`."""
        return self.starmap(zip(*iterables, strict=False), buffersize, unordered)

    def starmap(
        self,
        iterable: Iterable[tuple[Any, ...]],
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[Any]:
        """Run ``forward`` on each tuple of arguments, as ``itertools.starmap`` does.

        Parameters
        ----------
        iterable : Iterable[tuple[Any, ...]]
            Tuples of arguments, for instance the ``(x, coords)`` of a prognostic's iterator.
            It is advanced no further ahead of the results than ``buffersize``.
        buffersize : int | None, optional
            Results that may be unread, by default None: two for each worker.
        unordered : bool, optional
            Yield results as they come, by default False: in the order of the arguments.

        Yields
        ------
        Any
            Results.

        Raises
        ------
        ValueError
            If ``buffersize`` is below 1.
        """
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be at least 1, not {buffersize}")
        places = [r for r in self._farm.places if self._ranks is None or r in self._ranks]
        limit = buffersize or 2 * max(1, len(places))
        return self._starmap(iterable, limit, unordered)

    def _starmap(
        self, iterable: Iterable[tuple[Any, ...]], limit: int, unordered: bool
    ) -> Iterator[Any]:
        ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        pending: deque[Future[Any]] = deque()

        def next_result() -> Any:
            if not unordered:
                return pending.popleft().result()
            future = ready.get()
            pending.remove(future)
            return future.result()

        try:
            for args in iterable:
                while len(pending) >= limit:
                    yield next_result()
                future = self.submit(*args)
                pending.append(future)
                if unordered:
                    future.add_done_callback(ready.put)
            while pending:
                yield next_result()
        finally:  # the reader stopped early, or a result is an error
            for future in pending:
                future.cancel()

    def call_func(self, name: str, *args: Any, rank: str | int = "all", **kwargs: Any) -> Any:
        """Call any method of the model, on one worker or on all of them.

        Parameters
        ----------
        name : str
            The method.
        *args, **kwargs : Any
            Its arguments.
        rank : str | int, optional
            A rank, or ``"all"``, by default ``"all"``.

        Returns
        -------
        Any
            What it returned; for ``"all"`` a list of that, in the order of `remote_ranks`.

        Raises
        ------
        ConfigError
            If ``rank`` does not hold the model.
        TaskError
            If it raised.
        """
        self._check_open()
        if rank == "all":
            return self._everywhere(name, args, kwargs)
        if rank not in self.remote_ranks:
            raise ConfigError(f"rank {rank!r} does not hold {self.name}: {self.remote_ranks} do")
        call = Call(self._number, name, f"{self.name}.{name}", args, kwargs)
        return self._farm.call(int(rank), call).result()

    def set_up(self, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        """Call a method on all workers, and on each that joins later before it runs the model.

        Parameters
        ----------
        arguments : Callable[[int], tuple[Any, ...]]
            Returns for a rank the name of the method and its arguments.

        Raises
        ------
        TaskError
            If it raised.
        """
        self._check_open()

        def make(rank: int) -> Call:
            name, *args = arguments(rank)
            return Call(self._number, name, f"{self.name}.{name}", tuple(args))

        self._some(self._farm.set_up(self._number, make, self._ranks))

    def shutdown(self) -> None:
        """Remove the model from the workers; idempotent. The session stays open."""
        if self._closed:
            return
        self._closed = True
        self._farm.forget(self._number)
        for rank in self.remote_ranks:
            try:
                self._farm.call(rank, Call(self._number, "__drop__"))
            except Exception:
                return  # the session is broken: its workers stop anyway

    def __enter__(self) -> DistributedInference:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError(f"{self.name}: this DistributedInference was shut down")

    def _holders(self) -> list[int]:
        """Return `remote_ranks`, once there is one; raise `SessionError` if none is left."""
        return self._some(self._farm.holders(self._ranks))

    def _some(self, found: list[Any]) -> list[Any]:
        if not found:
            raise SessionError(f"{self.name}: no worker is left that holds it")
        return found

    def _everywhere(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        call = Call(self._number, name, f"{self.name} {name}", args, kwargs)
        futures = [self._farm.call(rank, call) for rank in self._holders()]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in (*done, *futures)][len(done) :]

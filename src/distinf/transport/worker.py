"""The worker's side of a call: it holds models, runs one call at a time, and makes the reply."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from distinf.background import use_compute_threads
from distinf.copying import copy
from distinf.gpu import Allocate, Cuda, Lane
from distinf.tensors import Found, Rule, Watched, count_nonfinite, is_finite, map_tensors, owned
from distinf.transport.contract import Call, Failure, Kept, Remote, Reply
from distinf.transport.kept import KeptTensors
from distinf.transport.replica import group_is_broken

# Optional methods of a model that the driver asks for.
_ASKED = ("input_coords", "output_coords", "variable_attributes")


@dataclass(frozen=True)
class Later:
    """A model's result with post-processing that overlaps the next call.

    ``then`` is called with the result, its tensors in host memory, and returns the call's value.
    """

    value: Any
    then: Callable[[Any], Any]


class Worker:
    """Holds the resident models of one rank and runs calls on them.

    Models and the tensors of their calls are on ``device``. ``nonfinite`` is the mode of the `Rule`
    for results of ``forward``; a result that is `Watched` has rules of its own. ``lane`` is the
    stream of the GPU on which models run; None: its default stream.

    With ``results_stay``, at first False, results of ``forward`` stay on the device.
    ``kept`` are the tensors of results that are `Kept`; ``fetch`` gets one that another rank keeps.
    ``join_group`` is called with the ranks that run models together with this one.
    ``when_unusable`` is called with the reason, once, when an error has left the GPU unusable for
    this process.
    """

    def __init__(
        self, rank: int, device: torch.device, nonfinite: str = "allow", lane: Lane | None = None
    ) -> None:
        self._rule = Rule(nonfinite)
        own_lane = Lane(Cuda(device)) if device.type == "cuda" else _HostLane()
        self._lane: Lane | _HostLane = lane or own_lane
        self._stuck: list[Call] = []
        self.results_stay = False
        self.when_unusable: Callable[[str], None] | None = None
        self.rank = rank
        self.device = device
        self.host = socket.gethostname()
        self._process = psutil.Process()
        self.kept = KeptTensors(rank)
        self.fetch: Callable[[Remote], torch.Tensor] | None = None
        self.join_group: Callable[..., None] | None = None
        self._models: dict[int, Any] = {}
        # Several threads receive calls, so that the next input can arrive; calls compute in turn.
        self._turn = threading.Lock()

    @property
    def computes(self) -> bool:
        """Whether a call runs now."""
        return self._turn.locked()

    def run(self, call: Call, allocate: Allocate | None = None) -> Reply:
        """Run one call and return its value or error as a reply.

        Raises only `KeyboardInterrupt`, in the main thread: a signal ends the run.

        The result is copied to the host memory, contiguous, that ``allocate`` returns for each of
        its tensors; by default, and where it returns None, only tensors on a GPU and views are
        copied. With `results_stay`, results of ``forward`` stay on the device.
        """
        value, failure, nonfinite, unusable = None, None, 0, ""
        # Even SystemExit is caught: a model must not end its rank.
        began = time.time()
        try:
            if call.method == "__release__":
                self.kept.release(call.args)
                return Reply(None, None, self.rank, self.host, began, began)
            call, reading = self._read_ahead(self._with_state(call))
        except BaseException as error:
            failed = self._failure(call, error)
            return Reply(None, failed, self.rank, self.host, began, time.time())
        with self._turn:
            use_compute_threads()  # each transport calls on threads of its own
            started = time.time()
            try:
                finish = self._compute(call, allocate)
            except BaseException as error:
                failure = self._failure(call, error)
                if not self._lane.recover(error):
                    unusable = "GPU"
                    self._keep(call, failure)
                elif self.rank != 0 and group_is_broken():
                    unusable = "group"
            ended = time.time()
        if failure is None:
            try:  # while the next call computes
                value, nonfinite = finish()
            except BaseException as error:
                failure = self._failure(call, error)
        memory = self._memory() if call.method == "__forward__" and not unusable else 0
        return Reply(
            *(value, failure, self.rank, self.host, started, ended),
            *(nonfinite, unusable, reading, memory),
        )

    def _memory(self) -> int:
        """Return what this process holds on its device, in bytes."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_reserved(self.device))
        return int(self._process.memory_info().rss)

    def _with_state(self, call: Call) -> Call:
        """Replace a first argument that a rank keeps by its tensor, beside a call that computes."""
        first = call.args[0] if call.args else None
        if not isinstance(first, Remote):
            return call
        if first.rank == self.rank:
            x = self.kept.copy(first)
        else:
            assert self.fetch is not None
            x = self.fetch(first)
        return dataclasses.replace(call, args=(x, *call.args[1:]))

    def _read_ahead(self, call: Call) -> tuple[Call, tuple[float, float] | None]:
        """Let a model read its own input, beside a call that computes; return the call with it."""
        read = getattr(self._models.get(call.model), "read_ahead", None)
        if call.method != "__forward__" or read is None:
            return call, None
        began = time.time()
        args = read(*call.args, **call.kwargs)
        return dataclasses.replace(call, args=args, kwargs={}), (began, time.time())

    def _compute(self, call: Call, allocate: Allocate | None) -> Callable[[], tuple[Any, int]]:
        """Run a model; return what completes its value and counts what is not finite in it."""
        forward = call.method == "__forward__"
        rule = self._rule if forward else Rule("allow")
        then: Callable[[Any], Any] | None = None
        with self._lane.entered(call.ready), torch.inference_mode():
            result = self._call_model(call)
            if isinstance(result, Kept):
                result = self.kept.keep(result)
            if isinstance(result, Later):
                result, then, allocate = result.value, result.then, None
            on_device = self.results_stay and forward and then is None
            value, count = self._lane.take_out(result, rule, on_device, allocate)

        def finish() -> tuple[Any, int]:
            nonfinite = count()
            return (value if then is None else then(value)), nonfinite

        return finish

    def _keep(self, call: Call, failure: Failure) -> None:
        """Keep a call whose memory the unusable GPU cannot free: that would abort the process."""
        if not self._stuck and self.when_unusable is not None:
            self.when_unusable(f"{failure.kind}: {failure.message}")
        self._stuck.append(call)

    def _failure(self, call: Call, error: BaseException) -> Failure:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and isinstance(error, KeyboardInterrupt):
            raise error  # no error of the model
        try:
            message = str(error)
        except Exception:  # some format a message from what no longer exists
            message = "(its text cannot be shown)"
        trace = "".join(traceback.format_exception(error))
        return Failure(self._describe(call), type(error).__name__, message, trace)

    def _call_model(self, call: Call) -> Any:
        if call.method == "__group__":
            assert self.join_group is not None
            return self.join_group(*call.args)
        if call.method == "__build__":
            factory, *args = call.args
            model = factory(*args, **call.kwargs)
            if isinstance(model, torch.nn.Module):
                model.eval()
            if callable(getattr(model, "to", None)):
                model = model.to(self.device)
            self._models[call.model] = model
            return {name for name in _ASKED if callable(getattr(model, name, None))}
        if call.method == "__drop__":
            self._models.pop(call.model, None)
            return None
        model = self._models[call.model]
        forward = call.method == "__forward__"
        function = forward_of(model) if forward else getattr(model, call.method)
        args, kwargs = self._lane.take((call.args, call.kwargs))
        return function(*args, **kwargs)

    def _describe(self, call: Call) -> str:
        if call.method == "__build__":
            factory = call.args[0]
            return f"constructing {getattr(factory, '__name__', type(factory).__name__)}"
        model = self._models.get(call.model)
        name = getattr(model, "label", None) or type(model).__name__
        return f"{name}.{call.method.strip('_')}"


class _HostLane:
    """Takes the place of a `Lane` where models compute on the CPU."""

    @contextlib.contextmanager
    def entered(self, ready: Any) -> Iterator[None]:
        yield

    def take(self, tree: Any) -> Any:
        return tree

    def recover(self, error: BaseException) -> bool:
        return True

    def take_out(
        self, result: Any, rule: Rule, on_device: bool, allocate: Allocate | None
    ) -> tuple[Any, Callable[[], int]]:
        """Copy a result out of the model's memory; its values are counted while others compute."""
        uncounted: Found = []

        def take_out(tree: Any, rule: Rule) -> Any:
            return map_tensors(tree, lambda x: _take_out(x, rule, allocate, uncounted))

        if isinstance(result, Watched):
            entries = result.entries(rule)
            value: Any = {name: take_out(entry, own) for name, entry, own in entries}
        else:
            value = take_out(result, rule)
        return value, functools.partial(count_nonfinite, uncounted)


def _take_out(
    tensor: torch.Tensor, rule: Rule, allocate: Allocate | None, uncounted: Found
) -> torch.Tensor:
    """Copy a tensor; append it to ``uncounted`` if it may have values that are not finite."""
    out = None if allocate is None else allocate(tensor)
    if out is None:
        out = owned(tensor)
        uncounted.append((rule, out))
        return out
    nonfinite = threading.Event()

    def look(block: torch.Tensor) -> None:
        if not is_finite(block):
            nonfinite.set()

    copy(tensor.detach(), out, None if rule.mode == "allow" else look)
    if nonfinite.is_set():
        uncounted.append((rule, out))
    return out


def forward_of(model: Any) -> Callable[..., Any]:
    """Return the function that runs a diagnostic.

    Earth2Studio's diagnostics are called (``__call__`` with their batching around it); every
    other class has ``forward``. A ``torch.nn.Module`` inherits a ``__call__`` and a ``forward``
    that say nothing about which of the two is meant.
    """
    own_call = callable(model) and type(model).__call__ is not torch.nn.Module.__call__
    function: Callable[..., Any]
    function = model if own_call and hasattr(model, "output_coords") else model.forward
    return function

"""The worker's side: resident models, one call at a time, an envelope for the answer."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from distinf.copying import copy
from distinf.gpu import Cuda
from distinf.streams import Lane
from distinf.tensors import (
    Rule,
    Watched,
    count_nonfinite,
    is_finite,
    map_tensors,
    owned,
    tensors_of,
)
from distinf.transport.contract import Call, Failure, Reply

__all__ = ["Later", "Worker", "forward_of"]

Allocate = Callable[[torch.Tensor], torch.Tensor | None]
Found = list[tuple[Rule, torch.Tensor]]

# Optional methods of a model that the driver asks for.
_ASKED = ("input_coords", "output_coords", "variable_attributes")


@dataclass(frozen=True)
class Later:
    """What a model returns that has more to do with its result, while the next call computes.

    Parameters
    ----------
    value : Any
        The result.
    then : Callable[[Any], Any]
        Called with it, its tensors in host memory; what it returns is the call's value.
    """

    value: Any
    then: Callable[[Any], Any]


class Worker:
    """Holds the resident models of one rank and runs calls on them.

    Parameters
    ----------
    rank : int
        This process's rank.
    device : torch.device
        Where models and the tensors of their calls live.
    nonfinite : str, optional
        What NaN or an infinite value in a result of ``forward`` is: ``"allow"``, by default,
        nothing; ``"warn"`` counts them in the reply; ``"fail"`` makes it an error of the model. A
        model that returns `distinf.tensors.Watched` has rules of its own.
    lane : Lane | None, optional
        Stream of the GPU on which the models run, by default None: its default stream.

    Attributes
    ----------
    results_stay : bool
        Whether results of ``forward`` stay on the device; at first False: they go to the host.
    when_unusable : Callable[[str], None] | None
        Called with the reason, once, when an error has left the GPU unusable for this process.
    """

    def __init__(
        self,
        rank: int,
        device: torch.device,
        nonfinite: str = "allow",
        lane: Lane | None = None,
    ) -> None:
        self._rule = Rule(nonfinite)
        self._lane = lane or (Lane(Cuda(device)) if device.type == "cuda" else None)
        self._stuck: list[Call] = []
        self.results_stay = False
        self.when_unusable: Callable[[str], None] | None = None
        self.rank = rank
        self.device = device
        self.host = socket.gethostname()
        self._models: dict[int, Any] = {}
        # Calls arrive on several threads, so that the next input can travel; they compute in turn.
        self._turn = threading.Lock()

    def run(self, call: Call, allocate: Allocate | None = None) -> Reply:
        """Run one call and put its outcome into an envelope; never raises.

        Parameters
        ----------
        call : Call
            Tensors among its arguments are on the host or on this rank's device.
        allocate : Callable[[torch.Tensor], torch.Tensor | None] | None, optional
            Gives the host memory, contiguous, that a tensor of the result is copied to; by default,
            and where it returns None, there is a copy only if the tensor is on a GPU or a view.

        Returns
        -------
        Reply
            Its tensors are on the host, those of ``forward`` only unless `results_stay`.
        """
        value, failure, nonfinite, unusable = None, None, 0, False
        then: Callable[[Any], Any] | None = None
        unseen: Found = []
        with self._turn:
            started = time.time()
            try:
                with self._computing(call), torch.inference_mode():
                    result = self._do(call)
                    if isinstance(result, Later):
                        result, then = result.value, result.then
                    rule = self._rule if call.method == "__forward__" else Rule("allow")
                    if self._lane is not None:  # quicker than on the host
                        nonfinite = _check(_tensors(result, rule))
                    stays = self.results_stay and call.method == "__forward__" and then is None
                    allocate = allocate if then is None else None
                    value = self._leave(result, rule, stays, allocate, unseen)
                    del result
            # Even SystemExit: a model must not take its rank away.
            except BaseException as error:
                unusable = self._lane is not None and not self._lane.recover(error)
                failure = self._failure(call, error)
            ended = time.time()
            if unusable and not self._stuck and self.when_unusable is not None:
                assert failure is not None
                self.when_unusable(f"{failure.kind}: {failure.message}")
            if unusable:
                self._stuck.append(call)  # letting its memory go would abort the process
        if failure is None:
            try:  # while the next call computes
                if self._lane is None:
                    nonfinite = _check(unseen)
                value = value if then is None else then(value)
            except BaseException as error:
                value, failure = None, self._failure(call, error)
        return Reply(value, failure, self.rank, self.host, started, ended, nonfinite, unusable)

    def _failure(self, call: Call, error: BaseException) -> Failure:
        return Failure(
            what=self._describe(call),
            kind=type(error).__name__,
            message=_text_of(error),
            traceback="".join(traceback.format_exception(error)),
        )

    def _computing(self, call: Call) -> AbstractContextManager[Any]:
        return nullcontext() if self._lane is None else self._lane.entered(call.ready)

    def _leave(
        self,
        result: Any,
        rule: Rule,
        stays: bool,
        allocate: Allocate | None,
        unseen: Found,
    ) -> Any:
        """Take a result away from the model; all of the call's work is done then.

        ``unseen`` gets the tensors in host memory that may have values that are not finite.
        """
        if isinstance(result, Watched):
            if self._lane is not None:
                return self._leave(result.value, rule, stays, allocate, unseen)
            return {
                name: self._leave(part, own, stays, allocate, unseen)
                for name, part, own in result.parts(rule)
            }
        if self._lane is not None:
            return self._lane.keep(result) if stays else self._lane.to_host(result, allocate)

        def leave(tensor: torch.Tensor) -> torch.Tensor:
            place = None if allocate is None else allocate(tensor)
            if place is None:
                place = owned(tensor)
                unseen.append((rule, place))
                return place
            finite = True

            def look(part: torch.Tensor) -> None:
                nonlocal finite
                if not is_finite(part):  # no thread takes back what another one found
                    finite = False

            copy(tensor.detach(), place, None if rule.mode == "allow" else look)
            if not finite:
                unseen.append((rule, place))
            return place

        return map_tensors(result, leave)

    def _do(self, call: Call) -> Any:
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
        function = forward_of(model) if call.method == "__forward__" else None
        given = call.args, call.kwargs
        if self.device.type != "cpu":
            given = map_tensors(given, self._to_device)
        return (function or getattr(model, call.method))(*given[0], **given[1])

    def _describe(self, call: Call) -> str:
        if call.method == "__build__":
            factory = call.args[0]
            return f"constructing {getattr(factory, '__name__', type(factory).__name__)}"
        model = self._models.get(call.model)
        name = getattr(model, "label", None) or type(model).__name__
        return f"{name}.{call.method.strip('_')}"

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device) if self._lane is None else self._lane.take(tensor)


def _tensors(result: Any, rule: Rule) -> Found:
    """List the tensors of a result, each with what holds for it."""
    if isinstance(result, Watched):
        return [found for _, part, own in result.parts(rule) for found in _tensors(part, own)]
    return [(rule, tensor) for tensor in tensors_of(result)]


def _check(found: Found) -> int:
    """Count the values that are NaN or infinite, where somebody wants to know."""
    counts: dict[Rule, int] = {}
    for rule, tensor in found:
        if rule.mode != "allow":
            counts[rule] = counts.get(rule, 0) + count_nonfinite(tensor)
    for rule, count in counts.items():
        if count and rule.mode == "fail":
            raise FloatingPointError(
                f"{count} values of the result are NaN or infinite ({rule.key}=fail)"
            )
    return sum(counts.values())


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # some build their text from what is no longer there
        return "(its text cannot be shown)"


def forward_of(model: Any) -> Callable[..., Any]:
    """Tell what a diagnostic call calls.

    Earth2Studio's diagnostics are called (``__call__`` with their batching around it); every
    other class has ``forward``. A ``torch.nn.Module`` inherits a ``__call__`` and a ``forward``
    that say nothing about which of the two is meant.
    """
    own_call = callable(model) and type(model).__call__ is not torch.nn.Module.__call__
    function: Callable[..., Any]
    function = model if own_call and hasattr(model, "output_coords") else model.forward
    return function

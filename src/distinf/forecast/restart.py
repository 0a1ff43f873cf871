"""Saved states of a forecast, from which an interrupted run continues."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distinf.background import in_background
from distinf.coords import Coords
from distinf.errors import ConfigError
from distinf.forecast.batching import Block
from distinf.seeds import generators
from distinf.store import RESTART, Destination, Marks

log = logging.getLogger("distinf")

_COORD = "coord "
_DTYPE = "dtype of x"  # only of types that NumPy lacks
_AHEAD = 2  # saved states of a block that may be ahead of the store
# Fields of a checkpoint state of Earth2Studio that holds only the visible state.
_VISIBLE = {"x", "coord_keys", "coord_values"}


def is_restartable(prognostic: Any, stated: bool | None = None) -> bool:
    """Whether a forecast that continues from one of its states equals an uninterrupted one.

    ``stated`` is ``prognostic.restartable`` of the config. By default this holds if the model binds
    a checkpoint state (``earth2studio.utils.checkpoint``) of only its visible state. Raises
    `ConfigError` if True is stated for a model for which it cannot hold.
    """
    several = len(prognostic.input_coords().get("lead_time", [0])) != 1
    draws = callable(getattr(prognostic, "set_rng", None))
    if stated and (several or draws):
        why = "draws random numbers of its own" if draws else "starts from several lead times"
        raise ConfigError(
            f"prognostic.restartable=true: {type(prognostic).__name__} {why}, so it cannot "
            "continue from one of its states; set it to false or null"
        )
    if stated is None and not (several or draws):
        bound = getattr(getattr(prognostic, "checkpoint", None), "checkpoint_dataclass", None)
        if dataclasses.is_dataclass(bound):
            return {field.name for field in dataclasses.fields(bound)} == _VISIBLE
    return bool(stated)


@dataclass(frozen=True)
class Start:
    """Where a block begins: its initial condition (step 0), or a saved state.

    ``generators`` are the saved states of the random generators, of `distinf.seeds.generators`.
    """

    step: int
    x: torch.Tensor
    coords: Coords
    generators: dict[str, np.ndarray] | None = None


def reached_by(marks: Marks, stored_every: int = 1) -> Callable[[Block], int]:
    """Return what finds the first step of a block that a store lacks, by its marks.

    ``stored_every`` is the number of steps between two stored lead times.
    """

    def reached(block: Block) -> int:
        lacks = marks.incomplete(block.times, block.members)
        return block.nsteps + 1 if lacks is None else lacks[0] * stored_every

    return reached


class RestartStates:
    """Saved states in a store: of each block the newest that the store has reached, and newer ones.

    ``every`` is the number of steps between two saved states; ``reached`` returns the first step of
    a block that the store lacks, as `reached_by` does.
    """

    def __init__(
        self, destination: Destination, every: int, reached: Callable[[Block], int]
    ) -> None:
        self._destination, self._every, self._reached = destination, every, reached
        self._writing: Future[None] | None = None
        self._ended: list[Block] = []
        self._turn = threading.Lock()  # several drivers end their blocks

    def newest(self, block: Block) -> Start | None:
        """Return the newest saved state of a block that is not ahead of the store."""
        reached = self._reached(block)
        for step in sorted(self._steps(block), reverse=True):
            if step > reached:
                continue
            try:
                return self._read(_name(block, step), step)
            except Exception as error:  # a node was lost while it wrote
                log.warning("the saved state %s is damaged: %s", _name(block, step), error)
        return None

    def offer(self, block: Block, step: int, x: torch.Tensor, coords: Coords) -> None:
        """Save a state if it is time for one: copy it now, and write in the background."""
        if step == 0 or step % self._every or step >= block.nsteps:
            return
        if self._writing is not None and not self._writing.done():
            return  # the disk is slower than the forecast: save a later state
        reached = self._reached(block)
        steps = self._steps(block)
        if len([old for old in steps if old > reached]) >= _AHEAD:
            return
        state = {**_packed(x), **generators(x.device)}
        state.update({f"{_COORD}{key}": values for key, values in coords.items()})
        past = sorted(old for old in steps if old <= reached)[:-1]
        self._writing = in_background(
            lambda: self._write(block, step, state, past), "distinf-restart"
        )

    def finish(self, block: Block) -> None:
        """Wait for the last write; remove the saved states of complete blocks."""
        if self._writing is not None:
            self._writing.result()
        with self._turn:
            ended, self._ended = [*self._ended, block], []
            for one in ended:
                if self._reached(one) <= one.nsteps:
                    self._ended.append(one)
                    continue
                for step in self._steps(one):
                    self._destination.remove(f"{RESTART}/{_name(one, step)}")

    def _steps(self, block: Block) -> list[int]:
        pattern = re.escape(_name(block, 0)).replace("step0", r"step(\d+)")
        found = (re.fullmatch(pattern, name) for name in self._destination.names(RESTART))
        return [int(match[1]) for match in found if match]

    def _write(self, block: Block, step: int, state: dict[str, Any], past: list[int]) -> None:
        data = io.BytesIO()
        np.savez(data, **state)
        try:
            self._destination.put(f"{RESTART}/{_name(block, step)}", data.getvalue())
            for old in past:
                self._destination.remove(f"{RESTART}/{_name(block, old)}")
        except OSError as error:  # the run does not need it; writes of results raise
            log.warning("step %d of the prognostic could not be saved: %s", step, error)

    def _read(self, name: str, step: int) -> Start:
        with np.load(io.BytesIO(self._destination.get(f"{RESTART}/{name}"))) as state:
            arrays = {key: state[key] for key in state.files}
        x = _unpacked(arrays)
        keys = [key for key in arrays if key.startswith(_COORD)]
        coords = OrderedDict((key.removeprefix(_COORD), arrays.pop(key)) for key in keys)
        return Start(step, x, coords, arrays)


def _name(block: Block, step: int) -> str:
    """File name of a saved state."""
    time = str(np.datetime_as_string(block.times[0], unit="s")).replace(":", "")
    member = "" if block.members is None else f"_member{block.members[0]}"
    return f"{time}{member}_step{step}.npz"


def _packed(x: torch.Tensor) -> dict[str, np.ndarray]:
    """Copy a state into arrays; of a type that NumPy lacks, its bytes."""
    own = x.detach().to("cpu", copy=True).resolve_conj().resolve_neg()
    try:
        return {"x": own.numpy()}
    except TypeError:
        as_bytes = own.contiguous().unsqueeze(-1).view(torch.uint8).numpy()
        return {"x": as_bytes, _DTYPE: np.array(str(own.dtype).removeprefix("torch."))}


def _unpacked(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """Take the state out of saved arrays."""
    x = torch.from_numpy(arrays.pop("x"))
    dtype = arrays.pop(_DTYPE, None)
    return x if dtype is None else x.view(getattr(torch, str(dtype))).squeeze(-1)

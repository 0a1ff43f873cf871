"""A driver's forecasts, asked for step by step, are those of one process."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from distinf.forecast.batching import Block, blocks
from distinf.forecast.prognostic import states
from distinf.forecast.stepper import Models, Piece, Stepper
from tests.forecast.test_prognostic import TIMES, Days, Doubling
from tests.waiting import until


def stepper_of(draw=False):
    models = Models(Doubling(draw), Days(), None)
    return Stepper(lambda device: models, seed=3).to("cpu")


def begin(stepper, *pieces):
    until(lambda: stepper.begin(*pieces))


def all_of(stepper, pieces):
    """The states of all pieces, as rank 0 asks for them, and the events."""
    found, events = [], []
    for i, piece in enumerate(pieces):
        begin(stepper, piece, *pieces[i + 1 : i + 2])
        while True:
            batch, more = stepper.step(piece.reached).value
            events += more
            if batch is None:
                break
            found += [(x.clone(), coords) for x, coords in batch]
    return found, events


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("members", [None, np.arange(3)])
def test_steps_are_those_of_one_process(draw, batch, members):
    cases = Block(TIMES, members, 2)
    expected = [
        (x.clone(), coords)
        for x, coords in states(Doubling(draw), Days(), cases, batch=batch, seed=3)
    ]
    todo = [Piece(block, 0) for block in blocks(cases, batch)]
    found, events = all_of(stepper_of(draw), todo)
    assert len(found) == len(expected)
    for (x, coords), (y, y_coords) in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
        assert list(coords) == list(y_coords)
        assert all(np.array_equal(coords[key], y_coords[key]) for key in coords)
    assert sum(event.kind == "forecast" for event in events) == 3 * len(todo)


def test_the_next_initial_condition_is_read_meanwhile():
    stepper = stepper_of()
    first, second = (Piece(block, 0) for block in blocks(Block(TIMES[:2], None, 1), 1))
    begin(stepper, first, second)
    read = stepper._starts
    assert len(read) == 1
    next(iter(read.values())).result(10)  # without the second block having begun
    stepper.step(0)
    begin(stepper, second)
    assert not stepper._starts
    ((_, coords),), _ = stepper.step(0).value
    assert coords["time"][0] == TIMES[1]


def test_a_read_that_takes_long_holds_up_nothing_else():
    class Slow(Days):
        def __call__(self, time, variable):
            assert asked.wait(30)
            return super().__call__(time, variable)

    asked = threading.Event()
    stepper = Stepper(lambda device: Models(Doubling(), Slow(), None), seed=3).to("cpu")
    piece = Piece(Block(TIMES[:1], None, 1), 0)
    assert not stepper.begin(piece)
    asked.set()
    begin(stepper, piece)
    assert stepper.step(0).value[0] is not None

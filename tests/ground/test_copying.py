"""Copies by several threads: the same as by one."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distinf import copying

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of one row, so that small tensors are shared between threads, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_BLOCK", 1)
        yield


@given(shapes, st.data())
def test_gather_is_index_select(shape, data):
    x = torch.rand(shape)
    dim = data.draw(st.integers(0, len(shape) - 1))
    index = torch.tensor(data.draw(st.lists(st.integers(0, shape[dim] - 1), min_size=1)))
    wanted = torch.index_select(x, dim, index)
    out = torch.full_like(wanted, torch.nan)
    copying.gather(x, dim, index, out)
    assert torch.equal(out, wanted)


@given(shapes, st.booleans())
def test_every_value_is_copied_and_then_looked_at_once(shape, strided):
    x = torch.rand(shape).transpose(0, -1) if strided else torch.rand(shape)
    out = torch.full(x.shape, torch.nan)
    seen = []
    copying.copy(x, out, lambda part: seen.append(part.clone()))
    assert torch.equal(out, x)
    assert torch.equal(
        torch.cat([part.flatten() for part in seen]).sort()[0], x.flatten().sort()[0]
    )


def test_a_scalar_is_copied():
    out = torch.zeros(())
    copying.copy(torch.tensor(3.0), out)
    assert out == 3


@pytest.mark.parametrize("bad", [0, 39])
def test_an_error_on_any_thread_is_the_copy_s(bad):
    x = torch.arange(40.0).reshape(40, 1)

    def look(part):
        if part[0, 0] == bad:
            raise ArithmeticError(f"row {bad}")

    with pytest.raises(ArithmeticError, match=f"row {bad}"):
        copying.copy(x, torch.zeros_like(x), look)
    copying.copy(x, x.clone())  # and the threads are there for the next one


def test_copies_of_several_threads_do_not_mix():
    sources = [torch.full((50, 3), float(i)) for i in range(8)]
    outs = [torch.full((50, 3), torch.nan) for _ in sources]
    pairs = list(zip(sources, outs, strict=True))
    threads = [threading.Thread(target=copying.copy, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(torch.equal(x, out) for x, out in pairs)

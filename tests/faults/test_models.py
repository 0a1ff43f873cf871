"""Models that raise, hang, or return wrong results."""

from __future__ import annotations

import numpy as np
import pytest

from tests.faults.conftest import Faults

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


def test_an_error_ends_the_run_and_keeps_what_was_in_flight(faults: Faults) -> None:
    done = faults.run("18: raise", "runtime.nproc=2")
    assert done.status == 1
    for word in (
        "Faulty.forward failed for faulty 2000-01-01T00:00 +18 h on rank 1",
        "attempt 1: ArithmeticError: negative humidity",
        "Traceback on rank 1",
        "3 of 6 tasks are complete",
        "output.mode=resume",
    ):
        assert word in done.err, done.err
    assert faults.complete() == [0, 1, 2]


def test_errors_of_any_kind_can_be_skipped(faults: Faults, undisturbed: np.ndarray) -> None:
    kinds = "0: bytes, 6: exit, 12: unpicklable, 18: memory, 24: not finite"
    done = faults.run(kinds, "runtime.on_error=skip", "runtime.nproc=3")
    assert done.status == 1
    assert "4 task(s) failed and are empty in the store" in done.err
    for word in (
        r"+0 h on rank",
        r"RuntimeError: bad \x80 byte",
        "SystemExit: 3",
        "Unpicklable: two arguments went in",
        "the GPU's memory is full: OutOfMemoryError: CUDA out of memory",
    ):
        assert word in done.err, done.err
    assert "+24 h: 3 values of the result are NaN or infinite" in done.out + done.err
    assert ", 4 skipped" in done.err
    np.testing.assert_array_equal(faults.values()[:, 5], undisturbed[:, 5])
    assert np.isnan(faults.values()[:, :4]).all()


def test_a_constructor_that_hangs_ends_the_run(faults: Faults) -> None:
    hang = ("+diagnostic.faulty.constructor=hang", "runtime.call_timeout=4", "runtime.nproc=2")
    done = faults.run("", *hang)
    assert done.status == 1
    for word in ("faulty construction on rank 1", "no answer in 4 s (runtime.call_timeout)"):
        assert word in done.err, done.err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("not finite", ["+12 h on rank 0", "FloatingPointError: 3 values of the result are NaN"]),
        ("shape", ["faulty 2000-01-01T00:00 +12 h: the result has dimensions"]),
    ],
)
def test_a_wrong_result_is_an_error(fault: str, words: list[str], faults: Faults) -> None:
    done = faults.run(f"12: {fault}", "runtime.nonfinite=fail", "runtime.nproc=1")
    assert done.status == 1
    assert all(word in done.err for word in words), done.err

"""Processes that are killed or stopped, and stores that are removed."""

from __future__ import annotations

import os
import shutil
import signal
import time

import numpy as np
import pytest

from testing import application
from tests.faults.conftest import STEPS, Faults

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
ALL = list(range(STEPS + 1))


def test_lost_workers_lose_no_task(faults: Faults, undisturbed: np.ndarray) -> None:
    """One is killed, one is stopped, one hangs; the driver runs the remaining tasks."""
    done = faults.run(
        "0: once kill, 6: once stop, 12: once sleep",
        *("runtime.nproc=4", "runtime.liveness_timeout=5", "runtime.call_timeout=12"),
    )
    assert done.status == 0, done.err
    for word in ("no sign of life for 5 s", "no answer in 12 s", "rank 0 runs diagnostics"):
        assert word in done.out + done.err, done.out + done.err
    assert faults.complete() == ALL
    np.testing.assert_array_equal(faults.values(), undisturbed)


def test_an_idle_driver_works(faults: Faults, undisturbed: np.ndarray) -> None:
    own = ("runtime.nproc=2", "runtime.driver_works=idle", "runtime.call_timeout=15")
    done = faults.run("0: once sleep", *own)
    assert done.status == 0, done.err
    assert "rank 0: " in done.out
    np.testing.assert_array_equal(faults.values(), undisturbed)


def test_a_task_that_kills_its_worker_is_tried_at_most_max_attempts_times(faults: Faults) -> None:
    # So long that the reply of the task before has arrived: a loss counts for the oldest task.
    slow = "+diagnostic.faulty.seconds=0.3"
    done = faults.run("12: kill", "runtime.nproc=3", "runtime.max_attempts=2", slow)
    assert done.status == 1
    assert "faulty 2000-01-01T00:00 +12 h was lost with its worker on attempt 2" in done.err
    assert "killed by SIGKILL" in done.err or "its connection ended" in done.err


def test_a_killed_driver_leaves_nobody_and_is_resumed(
    faults: Faults, undisturbed: np.ndarray
) -> None:
    resume = ("output.mode=resume", "output.verify=true", "output.restart_every=1")
    words = faults.words("18: once sleep", "runtime.nproc=3", *resume)
    process = faults.start(application.python_main(*words))
    faults.wait_for_a_step(process)
    faults.wait_for(".distinf.restart/*.npz", process)
    process.kill()
    process.communicate()
    (faults.folder / "fault 18").touch()  # the run may have been killed before it
    done = faults.run("18: once sleep", "runtime.nproc=2", *resume)
    assert done.status == 0, done.err
    assert "continues from its saved step" in done.out
    assert faults.complete() == ALL
    np.testing.assert_array_equal(faults.values(), undisturbed)


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_a_killed_launcher_leaves_no_process(launcher: str, faults: Faults) -> None:
    words = faults.words("18: sleep")
    if launcher == "mpirun":
        command = faults.mpirun(["-np", "2"], words)
    else:
        command = application.torchrun_main(2, *words)
    process = faults.start(command)
    faults.wait_for_a_step(process)
    process.kill()
    process.wait()
    began = time.monotonic()
    process.communicate()  # ends when no process holds its output any more
    assert time.monotonic() - began < 30


def test_a_stopped_worker_does_not_keep_its_launcher_waiting(faults: Faults) -> None:
    words = faults.words("12: once stop", "runtime.liveness_timeout=5")
    command = faults.mpirun(["--enable-recovery", "-np", "3"], words)
    done = application.finish(faults.start(command), 90)
    assert "has given no sign of life for 5 s" in done.out + done.err
    assert faults.complete() == ALL


def test_ctrl_c_twice_ends_the_run_as_once_does(faults: Faults) -> None:
    process = faults.start(application.python_main(*faults.words("18: sleep", "runtime.nproc=2")))
    faults.wait_for_a_step(process)
    os.kill(process.pid, signal.SIGINT)
    while process.poll() is None:
        try:
            process.wait(0.3)
        except Exception:
            os.kill(process.pid, signal.SIGINT)
    done = application.finish(process, 30)
    assert done.status in (130, -signal.SIGINT)
    assert 0 in faults.complete()


@pytest.mark.parametrize("limit", ["null", "60"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_one_process(
    faults: Faults, number: int, status: int, limit: str
) -> None:
    def end(pid: int) -> None:
        faults.wait_for("../fault 12")  # the model sleeps
        os.kill(pid, number)
        ended.append(time.monotonic())

    ended: list[float] = []
    own = ("runtime.nproc=1", f"runtime.call_timeout={limit}")
    done = faults.run("12: once sleep", *own, meanwhile=end)
    assert time.monotonic() - ended[0] < 30  # no call is waited for
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    assert "output.mode=resume" in done.err
    assert faults.complete() == [0, 1]


def test_a_store_that_is_removed_ends_the_run(faults: Faults) -> None:
    words = faults.words("24: once sleep", "runtime.nproc=2", "runtime.call_timeout=5")
    process = faults.start(application.python_main(*words))
    faults.wait_for_a_step(process)
    # Moved first: the run writes into the folder while it is emptied.
    shutil.rmtree((faults.folder / "out.zarr").rename(faults.folder / "removed"))
    done = application.finish(process, 60)
    assert done.status == 1
    assert "could not be written" in done.err
    assert "Traceback" not in done.err


def test_a_full_disk_ends_the_run(faults: Faults) -> None:
    full = faults.folder / "full"
    full.mkdir()
    words = [*faults.words("", "output.check_space=false", "runtime.nproc=2")]
    words += ["parameters.output_path=full/out.zarr", "parameters.nsteps=40"]
    mount = f'mount -t tmpfs -o size=200k none {full} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", *application.python_main(*words)]
    done = application.finish(faults.start(command), 120)
    assert done.status == 1
    assert "could not be written" in done.err
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err

"""Models that raise, workers that die, drivers that die: every run ends, no task is lost."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import wait

import pytest

from distinf import DistributedInference, local_concurrent_pipeline, session
from testing import application
from tests.ranks.conftest import DEADLINE, leaving_nothing
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def app(run):
    done = run("failures.py", deadline=2 * DEADLINE)
    assert done.status == 0, f"{done.out}\n{done.err}"
    return done


def test_a_constructor_that_fails_is_named_in_the_error(app):
    error = app["constructor"]
    assert error["kind"] == "TaskError"
    for word in ("Broken", "construction", "rank ", "FileNotFoundError", "weights.pt"):
        assert word in error["text"]
    assert "in __init__" in error["notes"]


def test_ranks_that_are_not_workers_are_refused(app):
    assert app["no such ranks"]["kind"] == "ConfigError"
    assert "[7]" in app["no such ranks"]["text"]
    assert "[1, 2]" in app["no such ranks"]["text"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not importable", ["<lambda>", "pickle"]),
        ("cannot go", ["Picky task", "pickle"]),
        ("cannot come back", ["Picky task", "pickle"]),
    ],
)
def test_objects_that_cannot_be_pickled_are_named(app, name, words):
    assert app[name]["kind"] == "SessionError"
    for word in words:
        assert word in app[name]["text"]


def test_such_errors_leave_the_worker_free(app):
    assert app["still usable"] == app["usable after that"] == 2


def test_a_model_s_error_names_call_task_rank_host_and_attempt(app):
    error = app["task error"]
    assert error["kind"] == "TaskError"
    fields = error["fields"]
    assert fields["what"] == "Picky.forward"
    assert fields["task"] == "Picky 2023-06-01T00:00 +12 h"
    assert fields["rank"] in (1, 2)
    assert fields["attempt"] == 1
    assert (fields["kind"], fields["remote_message"]) == (
        "ArithmeticError",
        r"negative humidity \x80",
    )
    where = f"on rank {fields['rank']} ({fields['host']}), attempt 1"
    for word in (fields["what"], fields["task"], where, r"negative humidity \x80"):
        assert word in error["text"]
    assert f"Traceback on rank {fields['rank']}" in error["notes"]
    assert "in look_closer" in error["notes"]


@pytest.mark.parametrize("name", ["later", "elsewhere", "queued"])
def test_later_calls_raise_the_first_error(app, name):
    for part in ("kind", "text", "fields"):
        assert app[name][part] == app["task error"][part]


def test_no_task_is_lost_with_a_worker(app):
    assert app["carrier"] == "host (shared memory)"
    assert app["sums"] == [float(step) for step in range(12)]


def test_a_task_that_was_sent_again_is_the_same_task(app):
    assert app["steps"] == list(range(12))


def test_a_lost_worker_gets_no_more_tasks(app):
    assert app["ranks"] == app["left"]
    assert len(app["left"]) == 1
    assert app["lost rank"]["kind"] == "ConfigError"


def test_without_workers_everything_is_a_clear_error(app):
    for name, words in (
        ("last worker", ["Deadly 2023-06-01T00:00 +18 h", "attempt 1", "no worker is left"]),
        ("waiting", ["Deadly 2023-06-01T00:00 +24 h", "no worker is left"]),
        ("nobody", ["no worker is left"]),
        ("no new model", ["no worker is left"]),
    ):
        assert app[name]["kind"] == "SessionError", app[name]
        for word in words:
            assert word in app[name]["text"]


def test_a_session_closes_after_errors_and_losses(app):
    assert app["models ended"]
    assert app["losses ended"]
    assert "Traceback" not in app.err


@pytest.mark.slow
def test_an_application_whose_workers_all_died_ends_with_the_reason(run):
    done = run("all_lost.py")
    assert done.status == 1
    last = done.err.strip().splitlines()[-1]
    for word in ("SessionError", "Deadly 2023-06-01T00:00 +", "no worker is left"):
        assert word in last
    assert done.err.count("Traceback (most recent call last)") == 1


@pytest.mark.slow
def test_a_session_ends_well_after_tasks_that_nobody_waits_for(run):
    done = run("unread.py", torchrun=3)
    assert done.status == 0, done.err
    assert done.out.splitlines() == ["handled", *3 * ["after the session"]]


class Brief:
    def forward(self, x):
        time.sleep(0.01)
        return x


def test_ctrl_c_ends_all_callables_that_run_side_by_side():
    def work():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            infer.submit(1).result()

    def waits():
        frame = sys._current_frames()[threading.main_thread().ident]
        codes = [frame.f_code for frame, _ in traceback.walk_stack(frame)]
        return codes[0] is threading.Condition.wait.__code__ and wait.__code__ in codes

    def interrupt():
        until(waits)
        os.kill(os.getpid(), signal.SIGINT)

    with session():
        infer = DistributedInference(Brief)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            local_concurrent_pipeline([work, interrupt])
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [0, 3])
def test_when_the_driver_is_killed_no_process_stays(command, tmp_path, torchrun):
    args = () if torchrun else (3,)
    line = command("endless.py", *args, torchrun=torchrun)
    with leaving_nothing(patience=30.0) as environment:
        process = application.start(line, tmp_path, **environment)
        name, driver = json.loads(process.stdout.readline())
        assert name == "driver"
        os.kill(driver, signal.SIGKILL)
        status = application.finish(process, DEADLINE).status
    assert status != 0

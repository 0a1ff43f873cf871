"""One run holds a store in an object store, whatever races, stops or lies about the time."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import numpy as np
import pytest
import s3fs
from moto.s3.models import s3_backends

from distinf.errors import StoreError
from distinf.store import check_output, hold
from distinf.store.destination import find_destination
from distinf.store.hold import ObjectHold
from distinf.store.object_store import conditional_writes, holds_conditions
from tests import s3_server
from tests.store.test_forecast_store import DIAGNOSTICS, open_store, result
from tests.waiting import until

RACES = int(os.environ.get("DISTINF_RACES", "60"))
HOLDER = ".distinf.lock.json"
OTHER = {"host": "elsewhere", "pid": 1, "since": "2023", "token": "other"}


@pytest.fixture(scope="module")
def bucket():
    with s3_server.s3("holds") as url:
        yield url


@pytest.fixture
def url(bucket, request):
    return f"{bucket}/{abs(hash(request.node.name))}.zarr"


def files():
    return s3fs.S3FileSystem(use_listings_cache=False)


def put_holder(url, who, age=0.0):
    """Leave a hold that was written so many seconds ago, by the server's clock."""
    files().pipe_file(f"{url}/{HOLDER}", json.dumps(who).encode())
    for backend in s3_backends["123456789012"].values():
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if bucket in backend.buckets:
            backend.buckets[bucket].keys[f"{key}/{HOLDER}"].last_modified -= timedelta(seconds=age)


def get_holder(url):
    return json.loads(files().cat_file(f"{url}/{HOLDER}"))


RACER = """
import sys
from distinf.errors import StoreError
from distinf.store.destination import find_destination
for url in sys.stdin:
    racer = find_destination(url.strip())
    try:
        racer.hold()
        print("held", flush=True)
    except StoreError as error:
        print(error, flush=True)
    sys.stdin.readline()
    racer.release()
    print("released", flush=True)
"""


def ask(processes, line):
    """Send a line to all at once, and wait for an answer of each."""
    for process in processes:
        process.stdin.write(f"{line}\n")
    for process in processes:
        process.stdin.flush()
    deadline = time.monotonic() + 60
    for process in processes:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        assert ready, "a racer does not answer"
    return [process.stdout.readline().strip() for process in processes]


@pytest.mark.slow
def test_of_two_processes_that_race_for_a_store_one_holds_it(url):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", RACER], **pipes) for _ in range(2)]
    # Left by a process of this machine whose number another one has by now.
    dead = {**hold.this_process(), "started": "1", "token": "dead"}
    try:
        for i in range(RACES):
            if i % 3 == 0:
                put_holder(url, {**dead, "race": i})
            elif i % 3 == 1 and i > 1:
                files().rm_file(f"{url}/{HOLDER}")
            answers = ask(racers, url)
            assert sorted(a == "held" for a in answers) == [False, True], (i, answers)
            winner = answers.index("held")
            assert "held by another run" in answers[1 - winner]
            assert get_holder(url)["pid"] == racers[winner].pid
            assert ask(racers, "release") == ["released"] * 2
            assert get_holder(url)["released"]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


@pytest.mark.parametrize(
    "who",
    [
        {"beat": 0.0},  # a clock that is wrong
        {"host": socket.gethostname(), "pid": 2**22 + 1, "beat": 0.0},  # in another container
        {**hold.this_process(), "pid": 2**22 + 1, "machine": "another boot"},
        {**hold.this_process()},
    ],
    ids=["clock", "container", "boot", "alive"],
)
def test_a_fresh_hold_is_refused_whatever_its_owner_says(url, who):
    put_holder(url, {**OTHER, **who})
    with pytest.raises(StoreError, match=r"held by another run: .*last sign of life \d s ago"):
        open_store(url, "resume")
    assert get_holder(url)["token"] == "other"


@pytest.mark.parametrize(
    ("who", "age"),
    [
        ({"beat": 4e9}, 100.0),
        ({**hold.this_process(), "pid": 2**22 + 1}, 0.0),
        ({**hold.this_process(), "started": "1"}, 0.0),
    ],
    ids=["silent", "ended", "reused"],
)
def test_a_dead_hold_is_taken(url, who, age):
    put_holder(url, {**OTHER, **who}, age)
    with open_store(url, "resume") as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
        assert get_holder(url)["pid"] == os.getpid()
    assert get_holder(url)["released"]


def steal(url):
    """Take the hold as another run does that has seen it silent for too long."""
    put_holder(url, {**OTHER, "beat": time.time()})


def test_a_run_that_lost_its_hold_writes_nothing_more(url, monkeypatch):
    monkeypatch.setattr("distinf.store.hold._QUIET_SECONDS", -1.0)  # it was stopped meanwhile
    store = open_store(url)
    store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
    store._wait_for_all()
    steal(url)
    before = {name: files().cat_file(name) for name in files().find(url)}
    store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))
    with pytest.raises(StoreError, match=r"lost its hold: .* held by another run: host elsewhere"):
        store.close()
    assert {name: files().cat_file(name) for name in files().find(url)} == before


def test_a_beat_finds_that_the_hold_is_lost(url, monkeypatch):
    monkeypatch.setattr("distinf.store.hold._BEAT_SECONDS", 0.01)
    place = find_destination(url)
    place.hold()
    steal(url)
    until(lambda: place._held._lost)
    with pytest.raises(StoreError, match="lost its hold"):
        place.check_held()
    for writes in (lambda: place.put("x", b""), lambda: place.remove("x")):
        with pytest.raises(StoreError, match="lost its hold"):
            writes()
    place.release()
    assert get_holder(url)["token"] == "other"


def test_a_hold_that_somebody_removed_is_lost(url, monkeypatch):
    monkeypatch.setattr("distinf.store.hold._QUIET_SECONDS", -1.0)
    place = find_destination(url)
    place.hold()
    files().rm(url, recursive=True)
    with pytest.raises(StoreError, match="somebody removed"):
        place.check_held()
    place.release()
    assert not files().exists(url)


def test_a_hold_that_cannot_be_renewed_is_not_relied_on(url, monkeypatch):
    place = find_destination(url)
    place.hold()
    monkeypatch.setattr("distinf.store.hold._QUIET_SECONDS", -1.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", lambda *_, **__: 1 / 0)
    with pytest.raises(StoreError, match=r"could not be renewed for .* another run may take it"):
        place.check_held()


@pytest.mark.slow
def test_beats_hide_nothing_and_a_released_store_is_free(url, monkeypatch):
    monkeypatch.setattr("distinf.store.hold._BEAT_SECONDS", 0.01)
    for mode in ("create", "resume", "overwrite"):
        with open_store(url, mode) as store:
            store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
        assert get_holder(url)["released"]
    assert store.marks.counts[0] == 1


def test_a_hold_alone_is_no_store(url):
    place = find_destination(url)
    place.hold()
    place.release()
    open_store(url, "create").close()


def losing_answers(app):
    """Do what is asked of the hold, and answer every second time that it failed."""
    count = iter(range(10**6))

    def serve(environ, start):
        if environ["REQUEST_METHOD"] != "PUT" or HOLDER not in environ["PATH_INFO"]:
            return app(environ, start)
        if next(count) % 2:
            return app(environ, start)
        list(app(environ, lambda *_: None))
        start("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>lost</Message></Error>"]

    return serve


@pytest.mark.slow
def test_an_answer_that_was_lost_on_its_way_loses_no_hold(monkeypatch):
    monkeypatch.setattr("distinf.store.hold._QUIET_SECONDS", -1.0)
    with s3_server.s3("lossy", losing_answers) as bucket:
        place = find_destination(f"{bucket}/f.zarr")
        place.hold()
        for _ in range(4):
            place.check_held()
        place.release()
        assert get_holder(f"{bucket}/f.zarr")["released"]


def ignoring(app):
    """Know no conditions, as some servers do."""

    def serve(environ, start):
        environ.pop("HTTP_IF_MATCH", None)
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return app(environ, start)

    return serve


def refusing(app):
    """Refuse what has a condition, as other servers do."""

    def serve(environ, start):
        if not {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys():
            return app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("501 Not Implemented", [("Content-Type", "application/xml")])
        return [b"<Error><Code>NotImplemented</Code><Message>no condition</Message></Error>"]

    return serve


@pytest.mark.parametrize("server", [ignoring, refusing])
def test_a_server_without_conditional_writes_is_refused(server):
    with s3_server.s3(server.__name__, server) as bucket:
        with pytest.raises(StoreError, match="takes no conditional writes") as caught:
            check_output(f"{bucket}/f.zarr", "create")
        assert "\n" not in str(caught.value)
        assert files().find(bucket) == []


def test_a_file_system_without_conditional_writes_is_refused():
    with pytest.raises(StoreError, match=r"memory://f\.zarr: .* no conditional writes.*s3://"):
        check_output("memory://f.zarr", "create")


def test_a_folder_may_be_given_as_a_url(tmp_path):
    with open_store(f"file://{tmp_path}/f.zarr") as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
    with open_store(tmp_path / "f.zarr", "resume") as store:
        assert store.marks.counts[0] == 1


@pytest.mark.parametrize("url", ["file://f.zarr", "local://folder/f.zarr", "FILE://localhost/f"])
def test_the_url_of_a_folder_begins_at_the_root(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StoreError, match=r"output_path=\S+: the URL of a folder begins with \w+:///"
    ):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_run_replaced_is_noticed(tmp_path):
    path = tmp_path / "f.zarr"
    store = open_store(path)
    path.rename(tmp_path / "moved.zarr")
    with open_store(path):
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 0))
        with pytest.raises(StoreError, match="removed or replaced"):
            store.close()
    with open_store(path, "resume") as mine:
        assert np.array_equal(mine.marks.counts[1], 12)


def test_this_process_is_not_taken_for_another_one():
    me = hold.this_process()
    assert not hold.has_ended(me)
    assert hold.has_ended({**me, "started": "1"})
    assert not hold.has_ended({**me, "machine": None})
    assert not hold.has_ended({})
    child = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    assert hold.has_ended({**me, "pid": int(child.stdout)})


def google():
    """Google's JSON interface, as far as it is asked: conditional uploads and reads."""
    objects = {}

    def answer(start, status, body=b"", **headers):
        start(status, [("Content-Type", "application/json"), *headers.items()])
        return [body]

    def serve(environ, start):
        asked = dict(parse_qsl(environ["QUERY_STRING"]))
        name = asked.get("name") or environ["PATH_INFO"].rpartition("/o/")[2]
        data, generation, updated = objects.get(name, (b"", 0, None))
        if environ["REQUEST_METHOD"] == "POST":
            data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            if int(asked["ifGenerationMatch"]) != generation:
                return answer(start, "412 Precondition Failed", b"{}")
            generation, updated = time.time_ns(), datetime.now(UTC)
            objects[name] = data, generation, updated
        elif not generation or int(asked.get("generation", generation)) != generation:
            return answer(start, "404 Not Found", b"{}")
        elif asked.get("alt") == "media":
            return answer(start, "200 OK", data)
        about = {"name": name, "generation": str(generation), "updated": updated.isoformat()}
        return answer(start, "200 OK", json.dumps(about).encode())

    return s3_server.one_at_a_time(serve)


def test_google_takes_conditions_too(monkeypatch):
    import gcsfs

    with s3_server.served(google()) as url:
        fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=url, skip_instance_cache=True)
        store = conditional_writes(fs)
        assert holds_conditions(store, "gs://bucket/probe")
        first = ObjectHold("gs://bucket/f", "gs://bucket/f/hold", store)
        first.take()
        seen = store.read("gs://bucket/f/hold")
        assert -1 <= seen.age < 60
        with pytest.raises(StoreError, match="held by another run"):
            ObjectHold("gs://bucket/f", "gs://bucket/f/hold", store).take()
        first.release()
        second = ObjectHold("gs://bucket/f", "gs://bucket/f/hold", store)
        second.take()
        monkeypatch.setattr("distinf.store.hold._QUIET_SECONDS", -1.0)
        second.check()
        store.put("gs://bucket/f/hold", b"{}", store.read("gs://bucket/f/hold").version)
        with pytest.raises(StoreError, match="lost its hold"):
            second.check()

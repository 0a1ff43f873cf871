"""Worker: every outcome of a call comes back as an envelope."""

import dataclasses
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from distinf.errors import Interrupted
from distinf.gpu import Lane
from distinf.tensors import Rule, Watched
from distinf.transport import Call, Kept, Later, Remote, Reply, Worker
from tests.simulated_gpu import SimulatedGpu


class Unpicklable(Exception):
    """Cannot cross a process boundary as itself."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")
        self.stream = sys.stderr

    def __reduce__(self):
        raise TypeError("not this one")


class Model:
    def __init__(self, factor=1.0):
        if factor < 0:
            raise ValueError(f"factor {factor} is negative")
        self.factor = factor

    def forward(self, x):
        return x * self.factor

    def fail(self, error):
        raise error

    def nested(self):
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error

    def leave(self, status):
        sys.exit(status)

    def modes(self, x):
        return torch.is_inference_mode_enabled(), (x * self.weight()).requires_grad

    def weight(self):
        return torch.nn.Parameter(torch.ones(1))

    def later(self, begun, ended):
        def then(value):
            begun.set()
            assert ended.wait(30)
            return value + 1

        return Later(torch.ones(2), then)

    def end(self, ended):
        ended.set()

    def views(self, x):
        return {"row": x[0], "some": (x[:, :2], [x.T]), "whole": x, "text": "kept"}


class LikeEarth2Studio(torch.nn.Module):
    """Has batching of its own around the call, and a forward that means something else."""

    def input_coords(self):
        return {}

    def output_coords(self, coords):
        return coords

    def forward(self, x):
        raise AssertionError("the call was meant")

    def __call__(self, x, coords):
        return x + 1, coords


class PlainModule(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def output_coords(self, coords):
        return coords

    def forward(self, x):
        return self.dropout(x)


class CallableWithForward(Model):
    def __call__(self, x):
        raise AssertionError("forward was meant")


@pytest.fixture
def worker():
    return Worker(3, torch.device("cpu"))


def build(worker, factory, *args, number=0, **kwargs):
    return worker.run(Call(number, "__build__", "", (factory, *args), kwargs))


def test_a_call_answers_with_its_value_and_where_it_ran(worker):
    assert build(worker, Model, factor=2.0).failure is None
    reply = worker.run(Call(0, "__forward__", "step", (torch.ones(2),)))
    assert isinstance(reply, Reply)
    assert torch.equal(reply.value, torch.full((2,), 2.0))
    assert (reply.rank, reply.host) == (3, worker.host)
    assert reply.started <= reply.ended


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no such level"), "ValueError", "no such level"),
        (Unpicklable("a", "b"), "Unpicklable", "a b"),
        (RuntimeError(r"bad \x80 \u12 escapes"), "RuntimeError", r"bad \x80 \u12 escapes"),
        (RuntimeError(b"\xff\x00raw"), "RuntimeError", r"b'\xff\x00raw'"),
        (RuntimeError("Ω ☔ \U0001f4a7 \x00"), "RuntimeError", "Ω ☔ \U0001f4a7 \x00"),
        (ValueError(), "ValueError", ""),
    ],
    ids=["plain", "unpicklable", "escapes", "bytes", "unicode", "empty"],
)
def test_an_error_comes_back_in_plain_types(worker, error, kind, message):
    build(worker, Model)
    reply = pickle.loads(pickle.dumps(worker.run(Call(0, "fail", "", (error,)))))
    assert reply.value is None
    failure = reply.failure
    assert (failure.what, failure.kind, failure.message) == ("Model.fail", kind, message)
    assert "in fail" in failure.traceback
    assert kind in failure.traceback


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted])
def test_a_signal_is_no_error_of_the_model(worker, kind):
    """Python raises it in the main thread; elsewhere such an error is the model's own."""
    build(worker, Model)
    call = Call(0, "fail", "", (kind("ended"),))
    with pytest.raises(kind, match="ended"):
        worker.run(call)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(worker.run, call).result(30).failure.kind == kind.__name__


class WithoutText(Exception):
    """Cannot even say what is wrong."""

    def __str__(self):
        raise RuntimeError("no text")


def test_an_error_that_has_no_text_is_still_an_answer(worker):
    build(worker, Model)
    reply = worker.run(Call(0, "fail", "", (WithoutText(),)))
    assert reply.failure.kind == "WithoutText"


def test_the_cause_stays_in_the_traceback(worker):
    build(worker, Model)
    text = worker.run(Call(0, "nested")).failure.traceback
    assert "KeyError: 'inner'" in text
    assert "RuntimeError: outer" in text


@pytest.mark.parametrize("status", [0, 1, "bye"])
def test_a_model_cannot_take_its_rank_away(worker, status):
    build(worker, Model)
    reply = worker.run(Call(0, "leave", "", (status,)))
    assert (reply.failure.kind, reply.failure.message) == ("SystemExit", str(status))
    assert worker.run(Call(0, "__forward__", "", (torch.ones(1),))).failure is None


def test_a_constructor_that_fails_is_named(worker):
    reply = build(worker, Model, -1.0)
    assert reply.failure.what == "constructing Model"
    assert reply.failure.message == "factor -1.0 is negative"


def test_a_method_that_is_not_there_is_an_error(worker):
    build(worker, Model)
    failure = worker.run(Call(0, "backward")).failure
    assert failure.kind == "AttributeError"
    assert "backward" in failure.message


def test_earth2studio_diagnostics_are_called(worker):
    build(worker, LikeEarth2Studio)
    reply = worker.run(Call(0, "__forward__", "", (torch.ones(2), {"lat": 1})))
    assert reply.failure is None
    assert torch.equal(reply.value[0], torch.full((2,), 2.0))
    assert reply.value[1] == {"lat": 1}


@pytest.mark.parametrize("factory", [PlainModule, CallableWithForward])
def test_all_other_models_have_forward(worker, factory):
    build(worker, factory)
    reply = worker.run(Call(0, "__forward__", "", (torch.ones(50),)))
    assert reply.failure is None, reply.failure
    assert torch.equal(reply.value, torch.ones(50))  # and dropout is off


def test_a_function_that_returns_a_model_will_do(worker):
    def load(factor):
        return Model(factor)

    build(worker, load, 3.0)
    assert worker.run(Call(0, "__forward__", "", (torch.ones(1),))).value == 3


def test_the_driver_learns_which_optional_methods_there_are(worker):
    assert build(worker, Model).value == set()
    assert build(worker, LikeEarth2Studio).value == {"input_coords", "output_coords"}


def test_calls_run_in_inference_mode(worker):
    build(worker, Model)
    reply = worker.run(Call(0, "modes", "", (torch.ones(1),)))
    assert reply.value == (True, False)
    assert not torch.is_inference_mode_enabled()


def test_views_travel_without_the_rest_of_their_storage(worker):
    build(worker, Model)
    x = torch.arange(12.0).reshape(3, 4)
    value = worker.run(Call(0, "views", "", (x,))).value
    tensors = [value["row"], value["some"][0], value["some"][1][0], value["whole"]]
    for tensor, expected in zip(tensors, [x[0], x[:, :2], x.T, x], strict=True):
        assert torch.equal(tensor, expected)
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
    assert value["text"] == "kept"


def test_several_models_live_side_by_side_until_they_are_dropped(worker):
    build(worker, Model, 2.0, number=0)
    build(worker, Model, 3.0, number=1)
    args = (torch.ones(1),)
    assert worker.run(Call(0, "__forward__", "", args)).value == 2
    assert worker.run(Call(1, "__forward__", "", args)).value == 3
    assert worker.run(Call(0, "__drop__")).failure is None
    assert worker.run(Call(0, "__drop__")).failure is None
    assert worker.run(Call(0, "__forward__", "", args)).failure is not None
    assert worker.run(Call(1, "__forward__", "", args)).value == 3


def test_what_a_model_does_later_does_not_hold_up_the_next_call(worker):
    build(worker, Model)
    begun, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(worker.run, Call(0, "later", args=(begun, ended)))
        assert begun.wait(30)
        assert worker.run(Call(0, "end", args=(ended,))).failure is None
        assert torch.equal(first.result(30).value, torch.full((2,), 2.0))


def test_an_error_of_what_a_model_does_later_is_the_call_s(worker):
    build(worker, Model)
    begun, ended = threading.Event(), threading.Event()
    begun.set = lambda: 1 / 0
    assert worker.run(Call(0, "later", args=(begun, ended))).failure.kind == "ZeroDivisionError"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("bad", "nonfinite"), [([], 0), ([torch.nan], 1), ([torch.inf, torch.nan, -torch.inf], 3)]
)
def test_values_that_are_not_finite_are_counted_wherever_they_are(shared, bad, nonfinite):
    """Also in a result that several threads copy; a sum that overflows is none of them."""
    x = torch.full((6, 2**20), torch.finfo(torch.float32).max)
    for i, value in enumerate(bad):
        x[2 * i + 1, i] = value
    worker = Worker(1, torch.device("cpu"), "warn")
    build(worker, Model)
    reply = worker.run(Call(0, "__forward__", "", (x,)), torch.empty_like if shared else None)
    assert reply.nonfinite == nonfinite
    assert torch.equal(reply.value, x) or bad


def test_nan_in_a_result_can_be_an_error():
    worker = Worker(1, torch.device("cpu"), "fail")
    build(worker, Model)
    x = torch.ones(6, 2**20)
    x[5, 7] = torch.nan
    reply = worker.run(Call(0, "__forward__", "", (x,)), torch.empty_like)
    assert reply.value is None
    assert "1 values of the result are NaN or infinite" in reply.failure.message


class Land:
    """Two results, of which the first is NaN over land; it may do more with them."""

    def __init__(self, rules, land=3, ocean=2):
        self.rules = {name: Rule(mode, f"{name}.nonfinite") for name, mode in rules.items()}
        self.nan = {"land": land, "ocean": ocean}
        self.given = None

    def forward(self, later):
        values = {name: (torch.arange(5.0), "coords") for name in self.nan}
        for name, count in self.nan.items():
            values[name][0][:count] = torch.nan
        result = Watched(values, self.rules)
        return Later(result, self.then) if later else result

    def then(self, value):
        self.given = value
        return list(value)

    def was_given(self):
        return self.given is not None


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("where", ["host", "shared memory", "gpu"])
@pytest.mark.parametrize(
    ("of_all", "rules", "counted", "failed"),
    [
        ("fail", {"land": "allow"}, None, "2 values .* \\(runtime.nonfinite=fail\\)"),
        ("allow", {"ocean": "fail"}, None, "2 values .* \\(ocean.nonfinite=fail\\)"),
        ("warn", {"land": "allow"}, 2, None),
        ("allow", {"land": "warn"}, 3, None),
        ("fail", {"land": "allow", "ocean": "warn"}, 2, None),
        ("fail", {"land": "allow", "ocean": "allow"}, 0, None),
        ("warn", {}, 5, None),
    ],
)
def test_each_part_of_a_result_has_its_own_rule(of_all, rules, counted, failed, where, later):
    lane = Lane(SimulatedGpu()) if where == "gpu" else None
    worker = Worker(1, torch.device("cpu"), of_all, lane)
    build(worker, Land, rules)
    allocate = torch.empty_like if where == "shared memory" else None
    reply = worker.run(Call(0, "__forward__", "", (later,)), allocate)
    if failed:
        assert re.match(failed, reply.failure.message)
        assert not worker.run(Call(0, "was_given")).value
        return
    assert reply.failure is None
    assert reply.nonfinite == counted
    names = ["land", "ocean"]
    assert reply.value == names if later else list(reply.value) == names
    assert worker.run(Call(0, "was_given")).value is later


class Reader:
    """A model that reads its input, and computes the first only when it has read the second."""

    def __init__(self):
        self.second = threading.Event()

    def read_ahead(self, number):
        if number == 1:
            self.second.set()
        if number == 2:
            raise OSError("the file is gone")
        return (torch.full((2,), float(number)),)

    def forward(self, x):
        assert self.second.wait(30)
        return x + 1


def test_input_is_read_while_another_call_computes():
    worker = Worker(1, torch.device("cpu"))
    worker.run(Call(0, "__build__", args=(Reader,)))
    with ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(lambda n: worker.run(Call(0, "__forward__", "", (n,))), (0, 1)))
    assert [reply.value.tolist() for reply in replies] == [[1, 1], [2, 2]]
    assert all(reply.reading[0] <= reply.reading[1] <= reply.started for reply in replies)


def test_input_that_cannot_be_read_is_the_call_s_failure():
    worker = Worker(1, torch.device("cpu"))
    worker.run(Call(0, "__build__", args=(Reader,)))
    reply = worker.run(Call(0, "__forward__", "", (2,)))
    assert (reply.failure.kind, reply.failure.message) == ("OSError", "the file is gone")


class Keeping:
    def step(self, size):
        return Kept(([(torch.arange(float(size)), {"a": 1})], "more"))

    def forward(self, x):
        x += 1  # its input is its own
        return x


def doubled(x, empty=None):
    return 2 * x


def test_a_result_that_is_kept_stays_until_it_is_released():
    worker = Worker(3, torch.device("cpu"))
    worker.run(Call(0, "__build__", args=(Keeping,)))
    ((state, coords),), more = worker.run(Call(0, "step", args=(100_000,))).value
    assert (state.rank, state.shape, state.dtype) == (3, (100_000,), torch.float32)
    assert (coords, more, state.nbytes) == ({"a": 1}, "more", 400_000)
    sent = pickle.loads(pickle.dumps(state))
    for _ in range(2):  # a second one finds the values that the first one found
        y = worker.run(Call(0, "__forward__", args=(sent,))).value
        torch.testing.assert_close(y, torch.arange(100_000.0) + 1)
    y = worker.run(Call(0, "__forward__", args=(dataclasses.replace(sent, take=doubled),))).value
    torch.testing.assert_close(y, 2 * torch.arange(100_000.0) + 1)
    assert worker.run(Call(0, "__release__", args=(state.number,))).failure is None
    assert worker.run(Call(0, "__forward__", args=(sent,))).failure.kind == "KeyError"


def test_a_state_of_another_rank_is_fetched_before_the_model_runs():
    worker = Worker(1, torch.device("cpu"))
    worker.run(Call(0, "__build__", args=(Keeping,)))
    asked = []
    worker.fetch = lambda remote: asked.append(remote.number) or torch.zeros(2)
    remote = Remote(2, 7, (2,), torch.float32)
    y = worker.run(Call(0, "__forward__", args=(remote,))).value
    assert (y.tolist(), asked) == ([1, 1], [7])

"""Diagnostics behind one another, as one model on a worker."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from distinf.diagnostics.chain import Chain, Link, StoredSubset
from distinf.errors import ConfigError
from distinf.seeds import task_seed

LAT, LON = np.linspace(90, -90, 7), np.arange(0, 360, 30.0)
TIME, LEAD = np.array(["2023-06-01"], "M8[ns]"), np.array([6], "m8[h]").astype("m8[ns]")


def state(*variables, member=None):
    coords = OrderedDict(time=TIME, lead_time=LEAD, variable=np.array(variables), lat=LAT, lon=LON)
    if member is not None:
        coords = OrderedDict(ensemble=np.array([member]), **coords)
    shape = [len(values) for values in coords.values()]
    return torch.arange(float(np.prod(shape))).reshape(shape), coords


class Sum:
    """One variable from others, called as Earth2Studio's diagnostics are."""

    def __init__(self, inputs, output, lat=None, draw=False):
        self.inputs, self.output, self.draw = inputs, output, draw
        self.lat = np.empty(0) if lat is None else lat

    def input_coords(self):
        lon = np.empty(0) if self.lat.size == 0 else LON
        return OrderedDict(batch=np.empty(0), variable=np.array(self.inputs), lat=self.lat, lon=lon)

    def output_coords(self, coords):
        return OrderedDict(coords, variable=np.array([self.output]))

    def variable_attributes(self):
        return {self.output: {"units": "1"}}

    def __call__(self, x, coords):
        axis = list(coords).index("variable")
        weights = torch.arange(1.0, 1 + len(self.inputs)).reshape(-1, 1, 1)
        y = (x * weights).sum(axis, keepdim=True)
        x.zero_()  # a model may use its input's memory
        return (y + torch.rand(1) if self.draw else y), self.output_coords(coords)


class Same:
    """Takes what it is given."""

    def input_coords(self):
        return OrderedDict(batch=np.empty(0), lat=np.empty(0), lon=np.empty(0))

    def output_coords(self, coords):
        return OrderedDict(coords)

    def __call__(self, x, coords):
        return 2 * x, coords


def link(name, *args, after=None, rename=None, **kwargs):
    return Link(name, lambda: Sum(*args, **kwargs), after, rename or {})


def test_each_link_takes_from_the_one_before_it_else_from_the_state():
    x, coords = state("a", "b", "c")
    chain = Chain(
        [
            link("first", ["b", "a"], "s"),
            link("second", ["c", "s"], "t", after="first"),
            link("third", ["s", "t"], "u", after="second"),
        ]
    )
    assert list(chain.input_coords()["variable"]) == ["b", "a", "c"]
    a, b, c = x[0, 0].clone()
    made = chain.forward(x, coords)
    assert list(made) == ["first", "second", "third"]
    s = b + 2 * a
    t = c + 2 * s
    for name, expected in (("first", s), ("second", t), ("third", s + 2 * t)):
        y, y_coords = made[name]
        assert torch.equal(y[0, 0, 0], expected)
        assert list(y_coords) == ["time", "lead_time", "variable", "lat", "lon"]
    assert {n: list(g["variable"]) for n, g in chain.output_coords(coords).items()} == {
        n: list(g["variable"]) for n, (_, g) in made.items()
    }


def test_a_link_prefers_what_was_made_for_it():
    x, coords = state("a", "s")
    a = x[0, 0, 0].clone()
    chain = Chain([link("first", ["a"], "s"), link("second", ["s"], "t", after="first")])
    assert list(chain.input_coords()["variable"]) == ["a"]
    assert torch.equal(chain.forward(x, coords)["second"][0][0, 0, 0], a)


def test_links_side_by_side_do_not_feed_each_other():
    x, coords = state("a", "s")
    s = x[0, 0, 1].clone()
    chain = Chain(
        [
            link("first", ["a"], "q"),
            link("one", ["q"], "s", after="first"),
            link("other", ["s", "q"], "t", after="first"),
        ]
    )
    assert list(chain.input_coords()["variable"]) == ["a", "s"]
    q = x[0, 0, 0].clone()
    assert torch.equal(chain.forward(x, coords)["other"][0][0, 0, 0], s + 2 * q)


def test_a_later_link_may_be_on_fewer_rows():
    x, coords = state("a")
    rows = x[0, 0, 0, :6].clone()
    chain = Chain([link("first", ["a"], "s"), link("second", ["s"], "t", LAT[:6], after="first")])
    assert chain.output_coords(coords)["second"]["lat"].shape == (6,)
    assert torch.equal(chain.forward(x, coords)["second"][0][0, 0, 0], rows)


def test_a_link_that_takes_anything_takes_the_result_before_it():
    x, coords = state("a", "b")
    b = x[0, 0, 1].clone()
    chain = Chain([link("first", ["b"], "s"), Link("second", Same, "first")])
    assert list(chain.input_coords()["variable"]) == ["b"]
    assert torch.equal(chain.forward(x, coords)["second"][0][0, 0, 0], 2 * b)
    assert list(Chain([Link("all", Same)]).forward(x, coords)["all"][1]["variable"]) == ["a", "b"]


def test_a_missing_link_is_explained():
    chain = Chain([link("first", ["a"], "s"), link("second", ["r"], "t", after="first")])
    with pytest.raises(ConfigError) as caught:
        chain.output_coords(state("a", "b")[1])
    for words in ("diagnostic.second needs the variables r", "nor does first", "a, b", ".after="):
        assert words in str(caught.value)


def test_only_what_is_stored_comes_back_under_its_new_name():
    x, coords = state("a")
    a = x[0, 0, 0].clone()
    chain = Chain(
        [link("first", ["a"], "s"), link("second", ["s"], "t", after="first", rename={"t": "T"})],
        StoredSubset(variables=["T"], region={"lat": [0, 90], "lon": [-30, 30]}),
    )
    grids = chain.output_coords(coords)
    made = chain.forward(x, coords)
    assert list(made) == list(grids) == ["second"]
    y, y_coords = made["second"]
    assert list(y_coords["variable"]) == ["T"]
    np.testing.assert_array_equal(y_coords["lon"], [-30, 0, 30])
    assert torch.equal(y[0, 0, 0], a[:4][:, [11, 0, 1]])
    for key, values in grids["second"].items():
        np.testing.assert_array_equal(values, y_coords[key])
    assert chain.variable_attributes() == {"s": {"units": "1"}, "T": {"units": "1"}}


def test_draws_depend_on_the_task_alone():
    def draw(lead, member, seed=0):
        x, coords = state("a", member=member)
        coords["lead_time"] = np.array([lead], "m8[h]")
        chain = Chain([link("noise", ["a"], "s", draw=True)], seed=seed)
        y, _ = chain.forward(x, coords)["noise"]
        return float(y[0, 0, 0, 0, 0, 0])

    tasks = [(lead, member) for lead in (0, 6) for member in (0, 1)]
    drawn = {task: draw(*task) for task in tasks}
    assert {task: draw(*task) for task in reversed(tasks)} == drawn
    assert len(set(drawn.values())) == len(tasks)
    assert draw(0, 0, seed=1) != drawn[0, 0]
    torch.manual_seed(task_seed(0, "noise", TIME[0], np.timedelta64(6, "h"), 1))
    assert drawn[6, 1] == float(torch.rand(1))


def test_an_error_names_the_model_that_raised():
    class Broken(Same):
        def __call__(self, x, coords):
            raise ValueError("no")

    chain = Chain([link("first", ["a"], "s"), Link("second", Broken, "first")])
    with pytest.raises(ValueError, match="no"):
        chain.forward(*state("a"))
    assert chain.label == "Broken"

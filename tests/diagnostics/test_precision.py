"""Mixed precision and compilation of a diagnostic: only where asked for, and told to the store."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from distinf.diagnostics.chain import Chain, Link
from distinf.diagnostics.placement import split
from distinf.errors import ConfigError
from distinf.store.provenance import differences

COORDS = OrderedDict(
    time=np.array(["2023-06-01"], "M8[ns]"),
    lead_time=np.array([6], "m8[h]").astype("m8[ns]"),
    variable=np.array(["a", "b", "c"]),
    lat=np.linspace(90, -90, 8),
    lon=np.arange(0, 360, 45.0),
)


class Diagnostic(torch.nn.Module):
    """A network with coordinates around it, as Earth2Studio's diagnostics are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.core_model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 1, 1)
        )
        self.register_buffer("center", torch.full((3, 1, 1), 0.1))

    def input_coords(self):
        return OrderedDict(batch=np.empty(0), variable=COORDS["variable"])

    def output_coords(self, coords):
        return OrderedDict(coords, variable=np.array(["d"]))

    def __call__(self, x, coords):
        y = self.core_model((x - self.center).flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:]), self.output_coords(coords)


class Plain:
    def input_coords(self):
        return OrderedDict(batch=np.empty(0), variable=COORDS["variable"])


def result(**how):
    chain = Chain([Link("one", Diagnostic, **how)]).to(torch.device("cpu"))
    x = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return chain.forward(x, COORDS)["one"][0]


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 1e-5), ("float16", 1e-7)])
def test_mixed_precision_is_near_and_not_the_same(precision, least):
    plain, lowered = result(), result(precision=precision)
    assert lowered.dtype == torch.float32
    error = float((lowered - plain).norm() / plain.norm())
    assert least < error < 0.02


def test_none_is_the_models_own():
    assert torch.equal(result(), result(precision=None, compiled=False))


def test_networks_are_compiled_and_what_is_around_them_is_not(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    result()
    assert compiled == []
    result(compiled=True)
    assert compiled == [torch.nn.Sequential]


def test_without_a_network_there_is_nothing_to_compile():
    with pytest.raises(ConfigError, match=r"diagnostic.one.compile=true: Plain has no network"):
        Chain([Link("one", Plain, compiled=True)]).to(torch.device("cpu"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"precision": "float64"}, r"diagnostic.d.precision=float64: choose float16, bfloat16"),
        ({"compile": "max"}, r"diagnostic.d.compile=max: must be true, false or null"),
    ],
)
def test_wrong_options_are_explained(wrong, words):
    with pytest.raises(ConfigError, match=words):
        split({"_target_": "x", **wrong}, "diagnostic.d")


def test_they_are_no_settings_of_the_model():
    placement, rest = split({"_target_": "x", "precision": "bfloat16", "compile": True}, "d")
    assert (placement.precision, placement.compile) == ("bfloat16", True)
    assert rest == {"_target_": "x"}


def test_a_store_is_not_resumed_with_others():
    def config(**how):
        return {"diagnostic": {"d": {"_target_": "x", **how}}}

    assert not list(differences(config(), config(precision=None, compile=None)))
    for how in ({"precision": "bfloat16"}, {"compile": True}):
        ((key, was, now),) = differences(config(), config(**how))
        assert (was, {key.split(".")[-1]: now}) == (None, how)

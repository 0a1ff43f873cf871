"""A config's diagnostics, loaded on the workers that they belong to."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

from distinf.diagnostics import StoredSubset
from distinf.errors import TaskError
from distinf.session.session import Runtime, current_session, session
from recipes.farmed import construct

COORDS = OrderedDict(
    time=np.array(["2023-06-01"], "M8[ns]"),
    lead_time=np.array([0], "m8[ns]"),
    variable=np.array(["sst"]),
    lat=np.array([30.0, 60.0]),
    lon=np.array([0.0, 90.0, 180.0, 270.0]),
)


class OverLand:
    """A diagnostic of the ocean: NaN elsewhere."""

    def __init__(self, points: int = 1) -> None:
        self.points = points

    def input_coords(self) -> OrderedDict[str, np.ndarray]:
        return OrderedDict(batch=np.empty(0), lat=np.empty(0), lon=np.empty(0))

    def output_coords(self, coords: OrderedDict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        return OrderedDict(coords)

    def __call__(self, x, coords):  # type: ignore[no-untyped-def]
        y = x.clone()
        y[..., 0, : self.points] = torch.nan
        return y, coords


SECTION = {"_target_": f"{__name__}.OverLand"}


def diagnose(nonfinite: str, **sections: dict[str, object]) -> set[str]:
    """Run the diagnostics of a config on one state; returns those that gave a result."""
    given = {name: {**SECTION, **section} for name, section in sections.items()}
    with session(Runtime(nonfinite=nonfinite)):
        farmed = construct(given, current_session().farm.workers, StoredSubset(), 0)
        done: set[str] = set()
        for infer in farmed:
            with infer:
                done |= set(infer.submit(torch.ones(1, 1, 1, 2, 4), COORDS).result())
        return done


def test_nan_over_land_is_allowed_to_one_diagnostic_alone(caplog: pytest.LogCaptureFixture) -> None:
    allowed = {"nonfinite": "allow"}
    assert diagnose("fail", a=allowed) == {"a"}
    assert diagnose("warn", a=allowed) == {"a"}
    assert not caplog.records
    with pytest.raises(TaskError, match=r"1 values .*\(runtime.nonfinite=fail\)"):
        diagnose("fail", a=allowed, b={})
    with pytest.raises(TaskError, match=r"1 values .*\(diagnostic.b.nonfinite=fail\)"):
        diagnose("allow", a={}, b={"nonfinite": "fail"})


def test_each_diagnostic_of_a_chain_has_its_own_setting(caplog: pytest.LogCaptureFixture) -> None:
    a = {"nonfinite": "allow"}
    b = {"after": "a", "rename": {"sst": "t"}, "points": 3}
    assert diagnose("fail", a=a, b={**b, "nonfinite": "allow"}) == {"a", "b"}
    assert not caplog.records
    assert diagnose("warn", a=a, b=b) == {"a", "b"}
    (record,) = caplog.records
    assert "3 values of the result are NaN or infinite" in record.getMessage()
    with pytest.raises(TaskError, match=r"3 values .*\(runtime.nonfinite=fail\)"):
        diagnose("fail", a=a, b=b)

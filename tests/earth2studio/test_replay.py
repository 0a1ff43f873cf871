"""A forecast's store stands in for its prognostic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from distinf.forecast.prognostic import lead_times, rollout, step_coords
from distinf.models.fields import FileSource, RandomFields, replay

TIME = np.datetime64("2023-06-01", "ns")


def test_a_replayed_store_gives_its_states(tmp_path: Path) -> None:
    leads = np.array([0, 6, 12], "timedelta64[h]").astype("timedelta64[ns]")
    made = RandomFields(9, 16)(TIME + leads, ["u850", "v850"])
    fields = made.rename(time="lead_time").assign_coords(lead_time=leads).expand_dims(time=[TIME])
    path = str(tmp_path / "f.zarr")
    fields.to_dataset("variable").to_zarr(path)
    prognostic = replay(path)
    assert list(lead_times(prognostic, 2)) == list(leads)
    coords = step_coords(prognostic, TIME)
    assert list(coords["time"]) == [TIME]
    states = list(rollout(prognostic, FileSource(path), TIME, 2))
    for state, (x, there) in zip(fields.values[0], states, strict=True):
        assert list(there) == ["time", "lead_time", "variable", "lat", "lon"]
        assert list(there["variable"]) == ["u850", "v850"]
        np.testing.assert_array_equal(x.numpy()[0, 0], state)
    assert xr.open_zarr(path).sizes["lead_time"] == 3

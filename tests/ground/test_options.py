"""Options: one clear error for a misspelt key or an impossible value."""

import dataclasses
from datetime import datetime

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distinf.errors import ConfigError, DistinfError
from distinf.loading.load import check_target
from distinf.options import Output, Runtime
from distinf.parameters import parse_times
from distinf.typed_options import check_keys, from_mapping

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


@given(valid=st.sets(NAMES, min_size=1), data=st.data())
def test_valid_keys_pass(valid, data):
    check_keys(data.draw(st.lists(st.sampled_from(sorted(valid)))), valid, "runtime")


@given(valid=st.sets(NAMES, min_size=1), wrong=NAMES, where=st.sampled_from(["", "runtime"]))
def test_a_wrong_key_is_named_with_all_valid_ones(valid, wrong, where):
    assume(wrong not in valid)
    with pytest.raises(ConfigError) as caught:
        check_keys([*valid, wrong], valid, where)
    message = str(caught.value)
    assert message.startswith(f"runtime.{wrong} " if where else f"{wrong} ")
    assert message.endswith(", ".join(sorted(valid)))


@given(st.sampled_from([f.name for f in dataclasses.fields(Runtime)]), st.data())
def test_a_misspelt_key_suggests_the_one_that_was_meant(name, data):
    at = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:at] + name[at] + name[at:]
    with pytest.raises(ConfigError, match=rf"runtime\.{misspelt} does not exist.*runtime\.{name}"):
        from_mapping(Runtime, {misspelt: 1}, "runtime")


def test_an_unrelated_key_suggests_nothing():
    with pytest.raises(ConfigError) as caught:
        from_mapping(Output, {"xyzzy": 1}, "output")
    assert "Did you mean" not in str(caught.value)
    assert "mode, netcdf" in str(caught.value)


def test_from_mapping_sets_what_was_given():
    assert from_mapping(Output, {"mode": "resume"}, "output") == Output(mode="resume")
    assert from_mapping(Runtime, {"nproc": 4, "call_timeout": None}, "runtime") == Runtime(
        nproc=4, call_timeout=None
    )


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (Runtime, {"metrics_port": 65536}, ["runtime.metrics_port=65536", "65535", "or null"]),
        (Runtime, {"metrics_port": -1}, ["runtime.metrics_port=-1", "0 for any free one"]),
        (Runtime, {"metrics_port": True}, ["runtime.metrics_port=True", "must be a port"]),
        (Output, {"mode": "owerwrite"}, ["output.mode=owerwrite", "create, overwrite or resume"]),
        (Output, {"writers": 0}, ["output.writers=0", "at least 1"]),
        (Output, {"writers": "two"}, ["output.writers=two", "whole number"]),
        (Runtime, {"carrier": "ib"}, ["runtime.carrier=ib", "auto", "cuda", "host"]),
        (Runtime, {"nproc": 0}, ["runtime.nproc=0", "at least 1"]),
        (Runtime, {"nproc": 1.5}, ["runtime.nproc=1.5", "whole number"]),
        (Runtime, {"threads": 0}, ["runtime.threads=0", "at least 1"]),
        (Runtime, {"threads": None}, ["runtime.threads=None", "whole number"]),
        (Runtime, {"max_attempts": 0}, ["runtime.max_attempts=0", "at least 1"]),
        (Runtime, {"start_timeout": 0}, ["runtime.start_timeout=0", "above 0"]),
        (Runtime, {"start_timeout": None}, ["runtime.start_timeout=None", "seconds"]),
        (Runtime, {"call_timeout": -1}, ["runtime.call_timeout=-1", "above 0"]),
        (Runtime, {"call_timeout": True}, ["runtime.call_timeout=True", "seconds"]),
        (Runtime, {"call_timeout": "1h"}, ["runtime.call_timeout=1h", "seconds"]),
        (Runtime, {"call_timeout": float("nan")}, ["runtime.call_timeout=nan", "seconds"]),
        (Runtime, {"nproc": True}, ["runtime.nproc=True", "whole number"]),
        (Output, {"writers": True}, ["output.writers=True", "whole number"]),
        (Output, {"every": 0}, ["output.every=0", "at least 1"]),
        (Output, {"shards": 0}, ["output.shards=0", "at least 1"]),
        (Output, {"variables": "tp"}, ["output.variables=tp", "list"]),
        (Output, {"prognostic_variables": None}, ["output.prognostic_variables=None", "list"]),
        (Output, {"netcdf": True}, ["output.netcdf=True", "file"]),
        (Output, {"region": {"lats": [0, 1]}}, ["output.region.lats", "output.region.lat?"]),
        (Output, {"region": {"lat": [30]}}, ["output.region.lat=[30]", "two numbers"]),
        (Output, {"region": {"lat": [60, 30]}}, ["output.region.lat=[60, 30]", "south"]),
        (Output, {"region": {"lat": [30, 95]}}, ["output.region.lat=[30, 95]", "-90 to 90"]),
        (Output, {"region": {"lon": [0, 361]}}, ["output.region.lon=[0, 361]", "-180 to 360"]),
        (Runtime, {"seed": -1}, ["runtime.seed=-1", "at least 0"]),
        (Runtime, {"batch": 0}, ["runtime.batch=0", "at least 1"]),
        (Runtime, {"engine": "dask"}, ["runtime.engine=dask", "tensorpipe or ray"]),
        (Runtime, {"engine": "ray", "workers": 0}, ["runtime.workers=0", "[least, most]"]),
        (Runtime, {"engine": "ray", "workers": [3, 2]}, ["runtime.workers=[3, 2]", "at least 1"]),
        (Runtime, {"engine": "ray", "workers": True}, ["runtime.workers=True", "whole number"]),
        (Runtime, {"engine": "ray", "resources": {"GPU": "x"}}, ["runtime.resources", "{GPU: 1}"]),
        (Runtime, {"engine": "ray", "nproc": 2}, ["runtime.nproc=2", "runtime.engine=ray"]),
        (Runtime, {"drivers": 0}, ["runtime.drivers=0", "at least 1, or auto"]),
        (Runtime, {"drivers": True}, ["runtime.drivers=True", "or auto"]),
        (Runtime, {"drivers": "all"}, ["runtime.drivers=all", "or auto"]),
        (Runtime, {"engine": "ray", "drivers": 2}, ["runtime.drivers=2", "on Ray"]),
        (Runtime, {"workers": 2}, ["runtime.workers=2", "runtime.engine=tensorpipe"]),
        (
            Runtime,
            {"engine": "ray", "wait_for_workers": 0},
            ["wait_for_workers=0", "above"],
        ),
    ],
)
def test_an_impossible_value_is_named_with_what_is_possible(kind, given, words):
    with pytest.raises(ConfigError) as caught:
        from_mapping(kind, given, kind.__name__.lower())
    for word in words:
        assert word in str(caught.value)


def test_config_errors_are_caught_as_value_errors_and_as_ours():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, DistinfError)


DATES = st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1))


@given(st.lists(DATES, min_size=1, unique=True))
def test_times_are_read_as_given(dates):
    expected = np.array(dates, dtype="datetime64[ns]")
    for written in (dates, [str(d) for d in dates], [d.isoformat() for d in dates]):
        times = parse_times(written)
        assert times.dtype == np.dtype("datetime64[ns]")
        np.testing.assert_array_equal(times, expected)


def test_one_time_needs_no_list():
    expected = np.array(["2023-06-01T12:00"], dtype="datetime64[ns]")
    for written in ("2023-06-01T12", "2023-06-01 12:00:00", datetime(2023, 6, 1, 12)):
        np.testing.assert_array_equal(parse_times(written), expected)


@pytest.mark.parametrize("wrong", ["tomorrow", "2023-13-01", "", None, "NaT"])
def test_what_is_no_time_is_shown_with_how_to_write_one(wrong):
    with pytest.raises(ConfigError) as caught:
        parse_times(["2023-06-01", wrong])
    assert f"parameters.time={wrong}:" in str(caught.value)
    assert "2023-06-01T00:00:00" in str(caught.value)


@given(st.lists(DATES, min_size=1, unique=True), st.data())
def test_a_time_that_appears_twice_is_refused(dates, data):
    twice = [*dates, data.draw(st.sampled_from(dates)).isoformat()]
    with pytest.raises(ConfigError, match="appears twice"):
        parse_times(twice)


def test_no_time_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least one initial time"):
        parse_times([])


def test_a_target_without_its_key_is_refused():
    with pytest.raises(ConfigError, match=r"diagnostic\.wind has no _target_"):
        check_target({"lmax": 4}, "diagnostic.wind")


def test_a_target_that_is_not_there_is_refused():
    for target in ("distinf.models.Nothing", "distinf.nothing.At", "distinf.options.Nothing"):
        with pytest.raises(ConfigError, match=rf"data\._target_={target} cannot be imported"):
            check_target({"_target_": target}, "data")


def test_a_setting_that_a_target_does_not_take_is_refused():
    settings = {"_target_": "distinf.models.RandomFields", "_convert_": "all", "seeds": 1}
    with pytest.raises(ConfigError, match=r"data\.seeds does not exist.*data\.seed\?"):
        check_target(settings, "data")
    del settings["seeds"]
    check_target(settings, "data")


def test_targets_of_other_packages_are_not_imported():
    check_target({"_target_": "no_such_package.Model", "anything": 1}, "prognostic")

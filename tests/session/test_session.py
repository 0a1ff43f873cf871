"""Who says how many ranks a session starts."""

import sys

import pytest

from distinf import Runtime
from distinf.errors import ConfigError
from distinf.session.session import current_session, session


class Started(Exception):
    """Ranks would be started."""


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    def start(nproc, *_):
        raise Started(nproc)

    monkeypatch.setattr(sys.modules["distinf.session.session"], "LocalRanks", start)


@pytest.mark.parametrize(
    "given",
    [{"nproc": 3}, {"runtime": Runtime(nproc=3)}, {"runtime": Runtime(nproc=3), "nproc": 3}],
)
def test_ranks_are_started_however_they_are_asked_for(given):
    with pytest.raises(Started, match="3"), session(**given):
        pass


@pytest.mark.parametrize(
    "given", [{}, {"nproc": 1}, {"runtime": Runtime()}, {"runtime": Runtime(nproc=1)}]
)
def test_no_ranks_are_started_unless_asked(given):
    with session(**given) as rank:
        assert (rank, current_session().info.world_size) == (0, 1)


@pytest.mark.parametrize("numbers", [(2, 3), (3, 2), (1, 2)])
def test_two_numbers_are_refused(numbers):
    with pytest.raises(ConfigError) as caught, session(Runtime(nproc=numbers[0]), numbers[1]):
        pass
    assert str(caught.value) == (
        f"session(nproc={numbers[1]}) and Runtime(nproc={numbers[0]}) contradict each other: "
        "give one of them"
    )


def test_a_launcher_s_ranks_start_none(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with session(Runtime(nproc=4)) as rank:
        assert (rank, current_session().info.launcher) == (0, "environment")


def test_the_number_of_expected_ranks_is_that_of_the_options():
    with (
        pytest.raises(ConfigError, match=r"expect_ranks=4, but there are 3 rank"),
        session(Runtime(nproc=3, expect_ranks=4)),
    ):
        pass

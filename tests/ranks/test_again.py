"""A second session of one process."""

import pytest


@pytest.mark.slow
def test_its_ranks_are_new_and_have_the_environment_of_now(run):
    found = run("again.py")
    assert found.status == 0, found.err
    assert found["colours of 3 ranks"] == ["red"]
    assert found["colours of 4 ranks"] == ["None"]
    assert found["workers of 3 ranks"] == 2
    assert found["workers of 4 ranks"] == 3
    assert found["the same processes"] == []
    assert found["interface"] is None  # what is started later chooses its own
    assert not found.err

"""Many workers, few files."""

import pytest


@pytest.mark.slow
def test_32_workers_need_no_more_than_1024_descriptors(run):
    found = run("many.py", deadline=500)
    assert found.status == 0, found.err
    assert found["workers"] == 32
    assert found["right"]
    assert found["at work"] == 32
    assert found["descriptors"] < 768
    assert not found.err

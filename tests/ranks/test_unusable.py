"""A worker whose GPU fails leaves the run and the others continue, under each launcher."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [0, 3])
def test_its_worker_leaves_and_the_others_continue(run, torchrun):
    found = run("unusable.py", torchrun=torchrun)
    assert found.status == 0, found.err
    assert found["results"] == list(range(6))
    assert found["left"] == [2]
    assert found["ended"]
    for words in (
        "rank 1 on",
        "leaves, its GPU can no longer be used: RuntimeError: CUDA error: device-side assert",
        "rank 1 was lost, 1 worker(s) left",
    ):
        assert words in found.err

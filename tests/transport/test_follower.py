"""What a rank that follows does in its own process; several processes: tests/ranks/test_groups."""

import pickle

import pytest
import torch

from distinf.seeds import generators
from distinf.transport.replica import _Follower


class Alone:
    """In place of a group, whose first rank has sent these words."""

    device = torch.device("cpu")
    model = None

    def unpack(self, packed):
        return (pickle.loads(packed), (), generators(self.device), ()), []


class Prognostic:
    def __init__(self, group):
        pass

    def create_iterator(self):
        yield 0
        raise MemoryError("no room for step 1")


def test_an_error_in_a_step_is_that_of_each_later_step():
    """The first rank, which has made the step, would wait in the next one for ever."""
    follower = _Follower(Alone())
    for words in (("build", 7, Prognostic), ("iterate", 7), ("next", 7)):
        follower.do(pickle.dumps(words))
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room for step 1"):
            follower.do(pickle.dumps(("next", 7)))

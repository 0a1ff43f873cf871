"""Which diagnostics run behind which, and on which workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.diagnostics.placement import Placement, assign, chains, split
from distinf.errors import ConfigError

NAMES = "abcdefgh"


@st.composite
def forests(draw):
    """Diagnostics in any order, each behind none or one that exists."""
    names = draw(st.permutations(NAMES[: draw(st.integers(1, 8))]))
    after = {
        name: draw(st.none() | st.sampled_from(names[:i])) if i else None
        for i, name in enumerate(names)
    }
    return {name: Placement(after=after[name]) for name in draw(st.permutations(names))}


@given(forests())
def test_each_runs_once_and_behind_what_it_needs(placements):
    groups = chains(placements)
    assert sorted(name for group in groups for name in group) == sorted(placements)
    for group in groups:
        assert placements[group[0]].after is None
        for i, name in enumerate(group[1:], 1):
            assert placements[name].after in group[:i]


@pytest.mark.parametrize(
    ("placements", "words"),
    [
        ({"a": Placement(after="z")}, ["diagnostic.a.after=z", "no diagnostic z"]),
        ({"a": Placement(after="a")}, ["diagnostic.a.after=a", "wait for each other"]),
        (
            {"a": Placement(after="b"), "b": Placement(after="a")},
            ["wait for each other", "a after b after a"],
        ),
        (
            {"a": Placement(), "b": Placement(after="a", workers=2)},
            ["diagnostic.b.workers=2", "set diagnostic.a.workers"],
        ),
    ],
)
def test_a_chain_that_cannot_be_is_explained(placements, words):
    with pytest.raises(ConfigError) as caught:
        chains(placements)
    for word in words:
        assert word in str(caught.value)


@given(st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 12))
def test_own_workers_are_nobody_elses(asked, nworkers):
    placements = {NAMES[i]: Placement(workers=n) for i, n in enumerate(asked)}
    workers = list(range(1, nworkers + 1))
    own = [n for n in asked if n is not None]
    needed = sum(own) + (None in asked)
    if own and needed > nworkers:
        with pytest.raises(ConfigError, match=f"start {needed + 1} ranks"):
            assign(placements, placements, workers)
        return
    given_ = assign(placements, placements, workers)
    sharing = [given_[name] for name, p in placements.items() if p.workers is None]
    taken = [rank for name, p in placements.items() if p.workers for rank in given_[name]]
    assert len(taken) == len(set(taken)) == sum(own)
    for ranks in sharing:
        assert ranks is None if not own else sorted({*ranks, *taken}) == workers
        assert not set(ranks or ()) & set(taken)


def test_one_process_shares_itself():
    assert assign(["a"], {"a": Placement(workers=3)}, [0]) == {"a": None}


def test_a_placement_is_told_from_the_models_settings():
    placement, rest = split({"workers": 2, "rename": None, "levels": [850]}, "diagnostic.a")
    assert (placement, rest) == (Placement(workers=2), {"levels": [850]})
    assert split({"nonfinite": "allow"}, "diagnostic.a") == (Placement(nonfinite="allow"), {})
    for wrong in (
        *({"workers": 0}, {"workers": True}, {"after": ["b"]}, {"rename": {"tp": 1}}),
        *({"nonfinite": "never"}, {"nonfinite": False}),
    ):
        with pytest.raises(ConfigError, match=rf"diagnostic\.a\.{next(iter(wrong))}="):
            split(wrong, "diagnostic.a")

"""Models over several ranks: results, errors and lost ranks of replicas and of the prognostic."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def results(run):
    done = run("groups.py", "results")
    assert done.status == 0, f"{done.out}\n{done.err}"
    return done


def test_a_replica_is_one_worker_and_all_its_ranks_compute(results):
    assert results["workers"] == [2, 4]
    for parts, ranks in results["shares"]:
        assert parts == [6.0, 9.0]
        assert ranks in ([2, 3], [4, 5])
    assert {ranks[0] for _, ranks in results["shares"]} == {2, 4}
    assert results["group of rank 0"] == 2


def test_the_ranks_of_a_replica_draw_the_same_numbers(results):
    assert all(first == second for first, second in results["drawn"])
    assert len({first for first, _ in results["drawn"]}) > 1


def test_a_prognostic_steps_on_rank_0_and_the_next_one(results):
    assert results["variables"] == ["a"]
    assert "front_hook: a model over several ranks" in results["hook"]["text"]
    for name in ("steps", "steps again"):
        assert results[name] == [[0, 0], [2, 2], [4, 4], [6, 6]]


@pytest.fixture(scope="module")
def errors(run):
    done = run("groups.py", "errors")
    assert done.status == 0, f"{done.out}\n{done.err}"
    return done


def test_an_error_of_all_ranks_is_that_of_the_model(errors):
    assert errors["constructor"]["kind"] == "TaskError"
    assert errors["constructor"]["text"].startswith("constructing TellTale failed for TellTale")
    assert "no weights" in errors["constructor"]["text"]
    assert errors["raise"]["kind"] == "TaskError"
    assert errors["raise"]["text"].startswith("Share.forward failed for ")
    assert "ValueError: all ranks refuse this" in errors["raise"]["text"]
    assert errors["after raise"] == [[6.0, 9.0]] * 6
    assert errors["workers after raise"] == 2


def test_an_error_of_one_rank_ends_its_replica_and_nothing_else(errors):
    for what, said in (("alone", "one rank"), ("at first", "the first rank")):
        assert errors[f"raise {what}"]["kind"] == "TaskError"
        assert f"{said} refuses this" in errors[f"raise {what}"]["text"]
    assert "does not answer" not in errors["raise at first"]["text"]
    assert errors["after raise alone"] == [[6.0, 9.0]] * 6
    assert errors["workers after raise alone"] == 1


def test_an_error_of_one_rank_is_told_though_the_first_one_waits_for_ever(run):
    done = run("groups.py", "unnoticed", deadline=120)
    assert done.status == 0, f"{done.out}\n{done.err}"
    assert done["error"]["kind"] == "TaskError"
    assert "ArithmeticError: one rank refuses this" in done["error"]["text"]
    assert done["others"] == [[6.0, 9.0]] * 3


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_rank_loses_its_replica_and_no_task(run, how):
    done = run("groups.py", "losses", how, deadline=120)
    assert done.status == 0, f"{done.out}\n{done.err}"
    assert done["shares"] == [[6.0, 9.0]] * 6
    assert done["workers"] == 1
    assert "of its group" in done.err


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_rank_of_the_prognostic_ends_the_run(run, how):
    done = run("groups.py", "lost_beside_the_driver", how, deadline=120)
    assert done["steps"] == [[0, 0], [2, 2]]
    assert done["seconds"] < 30
    assert "rank 1" in done["session"]["text"]

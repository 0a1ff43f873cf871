"""A wrong launch ends on every rank, in time, and says what is wrong and the likely cause."""

import time

import pytest

from testing.application import Outcome, finish, python_main, start
from testing.slurm import NODES
from tests.launchers.conftest import DEADLINE, MPIRUN, free_port, main_py, ranks, shell
from tests.ranks.conftest import leaving_nothing

pytestmark = pytest.mark.slow

SOON = "start_timeout=15"  # the imports included
TWO_NODES = ["srun", "--nodes=2", "--ntasks=2", "--label"]


def lines(outcome, label=""):
    """Return the last lines of tracebacks, of one task of srun or of all."""
    return [
        line.removeprefix(label).strip()
        for line in outcome.err.splitlines()
        if line.startswith(label) and ("Error: " in line or "NoDriver: " in line)
    ]


def only(task):
    """Let one task of srun be a rank, while the other one sleeps."""
    (words,) = shell(ranks(SOON)).splitlines()[1:]
    script = f'test "$SLURM_PROCID" = {task} && exec {words}; exec sleep 120'
    return [*TWO_NODES, "--overlap", "--kill-on-bad-exit=1", "sh", "-c", script]


@pytest.fixture(scope="module")
def waited(slurm, tmp_path_factory):
    """Launches in which a rank is missing, side by side because they mostly wait."""
    folder = tmp_path_factory.mktemp("waited")
    world = [f"MASTER_PORT={free_port()}", "MASTER_ADDR=localhost", "RANK=0", "WORLD_SIZE=2"]
    driver = ["env", *world, *ranks(SOON)]
    other = ["env", f"MASTER_PORT={free_port()}", *world[1:], *ranks(SOON)]
    (folder / "script").write_text(shell(other))
    commands = {
        "no worker": only(0),
        "no driver": only(1),
        "one driver": driver,
        "another driver": driver,
        "no srun": ["sbatch", "--wait", "--ntasks=2", "--output=job.txt", "script"],
    }
    began = time.monotonic()
    with leaving_nothing() as environment:
        started = {
            name: start(command, folder, **environment, **slurm)
            for name, command in commands.items()
        }
        outcomes = {name: finish(process, DEADLINE) for name, process in started.items()}
    assert time.monotonic() - began < 90
    assert all(outcome.status != 0 for outcome in outcomes.values()), outcomes
    outcomes["no srun"] = Outcome(1, "", (folder / "job.txt").read_text())
    return outcomes


def test_a_rank_that_never_arrives_is_named_with_its_node(waited):
    (line,) = lines(waited["no worker"], "0:")
    for word in ("SessionError", "rank(s) [1] of 2", NODES[1], "start_timeout", "Likely cause"):
        assert word in line


def test_a_driver_that_never_arrives_is_named(waited):
    (line,) = lines(waited["no driver"], "1:")
    for word in ("NoDriver", "rank 1 on", "rank 0 of 2", "Likely cause", "MASTER_ADDR"):
        assert word in line


def test_a_rank_of_the_environment_alone_in_a_batch_script(waited):
    (line,) = lines(waited["no srun"])
    for word in ("rank(s) [1] of 2", "started under sbatch or salloc without srun"):
        assert word in line


def test_two_jobs_at_one_port_do_not_mix(waited):
    said = [lines(waited[name])[0] for name in ("one driver", "another driver")]
    assert any("cannot listen on localhost" in line and "another job" in line for line in said)
    assert any("rank(s) [1] of 2" in line for line in said)


def test_ranks_that_disagree_name_the_key_on_every_rank(launch, slurm):
    (words,) = shell(ranks("start_timeout=60")).splitlines()[1:]
    command = [*TWO_NODES, "sh", "-c", f"COLOUR=red$SLURM_PROCID exec {words}"]
    outcome = launch(command, **slurm)
    assert outcome.status != 0
    for label in ("0:", "1:"):
        assert "colour is red1 on rank 1" in lines(outcome, label)[0]
        assert "red0 on rank 0" in lines(outcome, label)[0]


def test_another_number_of_ranks_than_expected(launch):
    began = time.monotonic()
    outcome = launch([*MPIRUN, "-np", "2", *main_py("runtime.expect_ranks=3")])
    assert time.monotonic() - began < 30
    assert outcome.status != 0
    assert outcome.err.count("distinf: error:") == 1
    assert "runtime.expect_ranks=3, but there are 2 rank(s) (openmpi" in outcome.err


def test_a_batch_script_of_two_tasks_without_srun(sbatch):
    began = time.monotonic()
    outcome = sbatch(shell(main_py()), "--ntasks=2")
    assert time.monotonic() - began < 30
    assert outcome.status != 0
    assert outcome.err.count("distinf: error:") == 1
    for word in ("2 tasks", "without srun", "srun python main.py"):
        assert word in outcome.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["RANK=0", "not MASTER_ADDR and MASTER_PORT"]),
        (
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "5",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": "1",
            },
            ["local rank 5 of 2"],
        ),
    ],
)
def test_variables_that_contradict_one_another(launch, given, words):
    outcome = launch(python_main(), **given)
    assert outcome.status == 1
    assert outcome.err.startswith("distinf: error: ")
    assert all(word in outcome.err for word in words)


def test_a_variable_that_no_rank_can_read_is_reported_once(launch):
    """RANK alone decides who prints the error, since the launch is not understood."""
    began = time.monotonic()
    world = ["WORLD_SIZE=3", "MASTER_ADDR=localhost", "MASTER_PORT=1", "LOCAL_WORLD_SIZE=three"]
    outcomes = launch(*(["env", *world, f"RANK={rank}", *python_main()] for rank in range(3)))
    assert time.monotonic() - began < 40  # 10 s are promised; they take some to start
    assert [outcome.status for outcome in outcomes] == [1, 1, 1]
    assert "LOCAL_WORLD_SIZE=three: must be a whole number" in outcomes[0].err
    assert [outcome.err.count("distinf: error:") for outcome in outcomes] == [1, 0, 0]


def test_an_interface_that_does_not_exist(launch):
    outcome = launch(python_main("runtime.interface=eht0"))
    assert outcome.status == 1
    assert "runtime.interface=eht0 does not exist" in outcome.err
    assert "its interfaces are" in outcome.err


def test_models_that_do_not_fit_end_all_ranks_of_srun(launch, slurm):
    """Only the driver asks them; srun lets the other ranks live."""
    began = time.monotonic()
    wrong = "diagnostic.wind_decomposition.levels=[500]"
    outcome = launch([*TWO_NODES, *main_py(wrong)], **slurm)
    assert time.monotonic() - began < 60
    assert outcome.status != 0
    assert outcome.err.count("distinf: error:") == 1
    assert "0: distinf: error:" in outcome.err
    assert "u500" in outcome.err

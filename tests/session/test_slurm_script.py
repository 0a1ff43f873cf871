"""The batch script of a run."""

import shlex

import pytest
from omegaconf import OmegaConf

from distinf.errors import ConfigError
from distinf.session.slurm_script import SlurmJob, batch_script, read_job, repeated, submit

COMMAND = ["/opt/a b/python", "/opt/main.py", "parameters.time=[2023-06-01,2023-06-02]"]


def run_line(script):
    """The words that follow srun."""
    (line,) = [line for line in script.splitlines() if line.startswith("exec srun ")]
    return shlex.split(line)[2:]


def test_what_was_asked_for_stands_in_it_and_nothing_else():
    job = SlurmJob(
        account="climate",
        partition="gpu",
        time="1-00:00:00",
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=8,
        mem="200G",
        exclusive=True,
        environment={"A": "it's $HOME"},
        lines_before=["module load cuda"],
    )
    script = batch_script(job, COMMAND, "/scratch/a b")
    assert [line for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=distinf",
        "#SBATCH --account=climate",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=200G",
        "#SBATCH --exclusive",
    ]
    assert "cd '/scratch/a b' || exit 1\n" in script
    assert """export A='it'"'"'s $HOME'\n""" in script
    assert "\nmodule load cuda\n" in script
    words = run_line(script)
    assert words[-4:] == [*COMMAND, "slurm.action=none"]
    assert "--cpus-per-task=8" in words


def test_on_ray_each_node_starts_its_part_of_the_cluster():
    job = SlurmJob(nodes=4, gpus_per_node=8)
    script = batch_script(job, ["/env/bin/python", *COMMAND[1:]], "/scratch", "ray")
    assert "#SBATCH --ntasks-per-node=1\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    assert '\nexport PATH=/env/bin:"$PATH"\n' in script
    words = run_line(script)
    start = words.index("ray")
    assert words[start + 1] == "symmetric-run"
    assert words[start + 2 : start + 5] == ["--address", "$address", "--"]
    # Not all nodes are there when the run starts, so it cannot count their GPUs.
    own = ["/env/bin/python", *COMMAND[1:], "runtime.workers=32", "slurm.action=none"]
    assert words[start + 5 :] == own
    fewer = ["/env/bin/python", "main.py", "runtime.workers=3"]
    assert "workers=32" not in batch_script(job, fewer, "/scratch", "ray")


def test_the_smallest_script():
    script = batch_script(SlurmJob(nodes=1), COMMAND, "/scratch")
    assert [line for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=distinf",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=2",
    ]


def test_a_requeued_job_resumes():
    job = SlurmJob(requeue=True)
    kept = repeated(["a=1", "output.mode=create", "b=2"], job)
    script = batch_script(job, [*COMMAND, *kept], "/")
    assert "#SBATCH --requeue\n" in script
    assert run_line(script)[-4:] == ["a=1", "b=2", "output.mode=resume", "slurm.action=none"]
    with pytest.raises(ConfigError, match=r"slurm\.requeue=true with output\.mode=overwrite"):
        repeated(["output.mode=overwrite"], job)


def test_in_a_container_runs_its_own_python():
    words = run_line(batch_script(SlurmJob(container="a.sqsh"), COMMAND, "/scratch"))
    assert "--container-image=a.sqsh" in words
    assert "--container-mounts=/scratch:/scratch,/opt:/opt" in words
    assert "python" in words
    assert COMMAND[0] not in words


def test_the_run_s_own_words_are_repeated_and_slurm_s_are_not():
    path = "++parameters.output_path='a b'"
    given = ["slurm.nodes=2", "+slurm.time=1", "slurm=site", path, "x=1"]
    assert repeated(given, SlurmJob()) == [path, "x=1"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({"nodes": 1}, True),
        ({"lines_before": ["a"]}, True),
        ({"action": "submit"}, True),
        ({"action": "none", "nodes": 1}, False),
    ],
)
def test_any_key_asks_for_a_script(given, wanted):
    assert SlurmJob(**given).wanted == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"action": "run"}, ["slurm.action=run", "print, save, submit"]),
        ({"nodes": 0}, ["slurm.nodes=0"]),
        ({"gpus_per_node": "four"}, ["slurm.gpus_per_node=four"]),
        ({"time": "tomorrow"}, ["slurm.time=tomorrow", "2:00:00"]),
        ({"time": "1:00:00:00"}, ["slurm.time=1:00:00:00", "2:00:00"]),
        ({"time": 7200}, ["slurm.time=7200", "quote", 'or "2:00:00"', 'time: "7200"']),
        ({"time": 5400}, ["slurm.time=5400", 'time: "90:00" or "1:30:00"', 'time: "5400"']),
        ({"time": 120}, ["slurm.time=120", 'time: "2:00"', 'time: "120"']),
        ({"time": 90.5}, ["slurm.time=90.5", "quote"]),
        ({"time": True}, ["slurm.time=True", "2:00:00"]),
        ({"mem": "much"}, ["slurm.mem=much", "200G"]),
        ({"account": "a b"}, ["slurm.account='a b'", "one word"]),
        ({"exclusive": "yes"}, ["slurm.exclusive=yes", "true or false"]),
        ({"environment": {"A B": 1}}, ["slurm.environment.A B"]),
        ({"environment": "A"}, ["slurm.environment", "mapping"]),
        ({"lines_before": "module load"}, ["slurm.lines_before", "list"]),
    ],
)
def test_a_wrong_value_is_refused(given, words):
    with pytest.raises(ConfigError) as caught:
        SlurmJob(**given)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "time",
    ["30", "90:00", "2:00:00", "1-12", "1-12:30", "1-00:00:00", "UNLIMITED", "infinite"],
)
def test_every_form_of_time_that_sbatch_takes_reaches_it_unchanged(time):
    script = batch_script(SlurmJob(time=time), COMMAND, "/scratch")
    assert f"#SBATCH --time={time}\n" in script


@pytest.mark.parametrize("clock", ["2:00:00", "90:00", "2:00", "1:30.5"])
def test_a_clock_time_that_yaml_made_a_number_of_is_refused(clock):
    read = OmegaConf.create(f"time: {clock}")  # as a file of the group is read
    assert not isinstance(read.time, str)
    with pytest.raises(ConfigError, match=r"slurm\.time=.*quote"):
        SlurmJob(time=read.time)
    quoted = OmegaConf.create(f"time: '{clock}'")
    assert quoted.time == clock


@pytest.mark.parametrize(
    ("word", "value", "asked"),
    [("120", 120, "120"), ("2:00:00", "2:00:00", "2:00:00"), (None, "1-0", "1-0")],
)
def test_minutes_on_the_command_line_are_minutes(word, value, asked):
    given = ["x=1", *([f"++slurm.time={word}"] if word else [])]
    job = read_job({"time": value, "nodes": 2}, given)
    assert (job.time, job.nodes) == (asked, 2)


def test_a_number_that_does_not_stand_on_the_command_line_is_refused():
    with pytest.raises(ConfigError, match=r"slurm\.time=7200"):
        read_job({"time": 7200}, ["slurm=site"])


def test_saved_but_never_over_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = SlurmJob(action="save")
    assert "sbatch distinf.sbatch" in submit(job, "one\n")
    submit(job, "one\n")
    with pytest.raises(ConfigError, match=r"distinf\.sbatch exists.*slurm\.script"):
        submit(job, "two\n")
    assert (tmp_path / "distinf.sbatch").read_text() == "one\n"


def test_submitting_needs_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch"):
        submit(SlurmJob(action="submit"), "one\n")

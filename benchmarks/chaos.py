"""Random faults on random runs, until each run is complete: is anything lost, stuck or left?

uv run python -m benchmarks.chaos --runs 40 --seed 1
uv run python -m benchmarks.chaos --job archive
uv run python -m benchmarks.chaos --job drivers
uv run python -m benchmarks.chaos --job groups

Every run is one small forecast, the diagnosis of an archive of members with statistics and scores,
a forecast of members by several drivers, or a forecast whose models run on two ranks each. It is
resumed until it is complete: models that raise, kill, stop or stall their process, signals to any
process of it, and files cut short between two attempts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from testing import application
from testing.processes import marked
from testing.programs import SLURM, missing
from testing.slurm import cluster

LAUNCHES = ("own", "torchrun", "mpirun", "srun")
IN_MODEL = ("raise", "unpicklable", "bytes", "memory", "exit", "kill", "stop", "sleep", "shape")
SIGNALS = {
    "killed": signal.SIGKILL,
    "stopped": signal.SIGSTOP,
    "terminated": signal.SIGTERM,
    "interrupted": signal.SIGINT,
}
WRITING = ("output.writer=driver", "output.writer=workers", "output.shards=4")
LIVENESS, CALL = 8, 12  # s
ATTEMPT = 240.0  # s: of an attempt that takes 15 s by itself, and at most 3 x CALL by its faults
LEFT = 30.0  # s, as promised


@dataclass
class Score:
    """What is counted; all but the first three must be 0."""

    runs: int = 0
    attempts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    hangs: int = 0
    leftovers: int = 0
    different: int = 0
    untrue: int = 0  # attempts that exit with 0 though something is lacking

    @property
    def bad(self) -> int:
        return self.lost + self.twice + self.hangs + self.leftovers + self.different + self.untrue


@dataclass(frozen=True)
class Job:
    """What a run computes: its settings, its lead times and members, and its complete marks."""

    words: tuple[str, ...]
    leads: int
    members: int | None
    marks: dict[str, int]
    drivers: bool = False  # several, as many as the draw says
    group: int = 1  # ranks that run each model together

    def chunk(self, index: int) -> str:
        """Path of the chunk of a step of ``twice``, which is not in a shard."""
        member, lead = divmod(index, self.leads)
        return f"{'' if self.members is None else f'{member}/'}0/{lead}/0/0"


def forecast(home: Path) -> Job:
    words = ("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic")
    words += ("parameters.nsteps=23", "output.restart_every=3")
    words += ("~diagnostic.wind_decomposition", "~diagnostic.error_growth")
    return Job(words, 24, None, {"faulty": 24})


def archive(home: Path) -> Job:
    """Three members, compared with data; both are files in ``home``."""
    leads, members = 9, 3
    axes = {
        "ensemble": np.arange(members),
        "time": np.array(["2023-06-01"], "M8[ns]"),
        "lead_time": 6 * np.arange(leads) * np.timedelta64(3600 * 10**9, "ns"),
        "lat": np.linspace(90, -90, 33),
        "lon": np.linspace(0, 360, 64, endpoint=False),
    }
    values = np.random.default_rng(0).normal(size=[len(axis) for axis in axes.values()])
    fields = xr.DataArray(values.astype("f4"), axes, list(axes), "u850")
    fields.to_dataset().to_zarr(home / "in.zarr")
    truth = fields[0, 0].drop_vars(["ensemble", "time"]).rename("twice").rename(lead_time="time")
    truth.assign_coords(time=axes["time"][0] + axes["lead_time"]).to_netcdf(home / "truth.nc")
    data = f"{{_target_: distinf.models.FileSource, path: {home}/truth.nc}}"
    words = ("--config-name=archive", f"data.path={home}/in.zarr", "~diagnostic.wind_speed")
    words += ("output.statistics=[mean,max]", f"output.verification={{data: {data}}}")
    marks = {"faulty": leads * members, "faulty_scores": leads * members}
    return Job(words, leads, members, {**marks, "faulty_statistics": leads, "faulty_crps": leads})


def drivers(home: Path) -> Job:
    """Members of a prognostic that draws random numbers, shared out to several drivers."""
    leads, members = 9, 4
    words = ("prognostic.nlat=32", "prognostic.nlon=64", "recipe=diagnostic")
    words += ("prognostic._target_=testing.forecasts.Slow", "+prognostic.noise=0.01")
    words += (f"parameters.nsteps={leads - 1}", f"parameters.ensemble={members}")
    words += ("output.restart_every=2", "output.prognostic_variables=[z850]")
    words += ("~diagnostic.wind_decomposition", "~diagnostic.error_growth")
    marks = {"faulty": leads * members, "prognostic": leads * members}
    return Job(words, leads, members, marks, drivers=True)


def groups(home: Path) -> Job:
    """A forecast whose prognostic and diagnostic run on two ranks each."""
    plain = forecast(home)
    words = (*plain.words, "prognostic.ranks=2", "+diagnostic.faulty.ranks=2")
    return dataclasses.replace(plain, words=words, group=2)


JOBS = {"forecast": forecast, "archive": archive, "drivers": drivers, "groups": groups}


class Run:
    """One run of a job in a folder of its own."""

    def __init__(
        self,
        draw: random.Random,
        slurm: dict[str, str],
        score: Score,
        job: Job,
        engine: str = "tensorpipe",
    ) -> None:
        self.draw, self.score, self.job = draw, score, job
        self.folder = Path(tempfile.mkdtemp(prefix="distinf-chaos-"))
        self.store = self.folder / "out.zarr"
        self.launch = draw.choice([way for way in LAUNCHES if way != "srun" or slurm])
        self.launch = "ray" if engine == "ray" else self.launch
        self.ranks = draw.randint(2, 4) if job.group == 1 else job.group * draw.randint(2, 3)
        self.marker = uuid.uuid4().hex
        self.torn: set[Path] = set()
        self.model = "Faulty" if job.group == 1 else "FaultyTogether"
        self.environment = {"DISTINF_TEST_RUN": self.marker, **slurm}
        steps = draw.sample(range(job.leads), draw.randint(5, 9))
        self.faults = {6 * step: draw.choice(IN_MODEL) for step in steps}

    def command(self) -> list[str]:
        # Nobody can see that the driver is stopped, so a model stops workers only.
        where = {"stop": "on a worker once"}
        faults = ",".join(
            f"{lead}: {where.get(fault, 'once')} {fault}" for lead, fault in self.faults.items()
        )
        words = [
            *self.job.words,
            *("parameters.output_path=out.zarr", "output.mode=resume", "output.verify=true"),
            *self.shared_out(),
            f"+diagnostic.faulty._target_=testing.faulty.{self.model}",
            f"+diagnostic.faulty.faults={{{faults}}}",
            f"+diagnostic.faulty.folder={self.folder}",
            "+diagnostic.faulty.seconds=0.1",
            *(f"runtime.liveness_timeout={LIVENESS}", f"runtime.call_timeout={CALL}"),
            f"runtime.on_error={self.draw.choice(['fail', 'skip', 'skip'])}",
            f"runtime.driver_works={self.draw.choice(['never', 'fallback', 'idle'])}",
        ]
        main = [str(application.ROOT / "main.py"), *words]
        if self.launch == "ray":
            own = ["runtime.engine=ray", "runtime.address=local"]
            return [sys.executable, *main, *own, f"runtime.workers={self.ranks - 1}"]
        if self.launch == "own":
            return [sys.executable, *main, f"runtime.nproc={self.ranks}"]
        if self.launch == "torchrun":
            return application.torchrun_main(self.ranks, *words)
        if self.launch == "mpirun":
            own = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--enable-recovery"]
            return [*own, "-np", str(self.ranks), sys.executable, *main]
        own = ["srun", "--nodes=1", "--overlap", "--kill-on-bad-exit=0", "--wait=0"]
        return [*own, f"--ntasks={self.ranks}", sys.executable, *main]

    def shared_out(self) -> list[str]:
        """Say who writes, or how many drivers there are, which write themselves."""
        if not self.job.drivers:
            return [self.draw.choice(WRITING)]
        number = self.draw.choice([*range(2, self.ranks + 1), "auto"])
        return [f"runtime.drivers={number}"]

    def to_its_end(self) -> None:
        """Attempt after attempt until everything is there."""
        self.score.runs += 1
        command = self.command()
        expected = sum(self.job.marks.values())
        for attempt in range(12):
            before = self.written()
            disturb = attempt < 3
            status = self.attempt(command, disturb)
            self.compare(before)
            complete = self.complete()
            if status == 0 and complete < expected:
                # mpirun that lets survivors live says 0 of whatever its ranks say.
                self.score.untrue += self.launch != "mpirun"
            if complete == expected:
                break
            if disturb:
                self.tear()
        self.score.lost += expected - self.complete()
        self.score.faults.update(
            f"model: {fault}"
            for lead, fault in self.faults.items()
            if (self.folder / f"fault {lead}").exists()
        )

    def attempt(self, command: list[str], disturb: bool) -> int | None:
        self.score.attempts += 1
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=application.environment(**self.environment),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        for _ in range(self.draw.choice([0, 1, 1, 2]) if disturb else 0):
            self.strike(process)
        status: int | None = None
        try:
            status = process.wait(ATTEMPT)
        except subprocess.TimeoutExpired:
            self.score.hangs += 1
            self.tell("hangs")
        left = self.left()
        # What somebody else stopped can end nothing by itself, nor can those that wait for it.
        for pid in (stopped := [pid for pid in left if _stopped(pid)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        left = self.left() if stopped else left
        if left and status is not None:
            self.score.leftovers += 1
            self.tell(f"left over: {[(pid, _cmdline(pid)) for pid in left]}")
        for pid in marked(self.marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)
        return status

    def left(self) -> list[int]:
        """Wait until no process of the run is alive, as long as promised; return those that are."""
        deadline = time.monotonic() + LEFT
        while (left := marked(self.marker)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        """Send a signal to one of the run's processes, at a random moment."""
        if self.draw.random() < 0.25:  # while it starts
            moment, marks = self.draw.uniform(0, 15), 0
        else:
            moment, marks = self.draw.uniform(0, 1), self.complete() + self.draw.randint(1, 8)
        deadline = time.monotonic() + 60
        while self.complete() < marks and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        found = [p for p in marked(self.marker) if "main" in _cmdline(p) or "Ray" in _cmdline(p)]
        if process.poll() is not None or not found:
            return
        what = self.draw.choice(list(SIGNALS))
        victim = process.pid if what in ("terminated", "interrupted") else self.draw.choice(found)
        if what == "stopped":  # a worker: neither launcher nor driver fails by being stopped
            own = self.launch in ("own", "ray")
            workers = [p for p in found if p != process.pid and (own or _rank(p) > 0)]
            victim, what = (self.draw.choice(workers), what) if workers else (victim, "killed")
        role = "first process" if victim == process.pid else "another process"
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, SIGNALS[what])
            self.score.faults[f"{what}: {role} ({self.launch})"] += 1

    def tear(self) -> None:
        """Cut a chunk short, as a lost node may leave it."""
        chunks = [path for path in self.store.glob("twice/c/**/*") if path.is_file()]
        if chunks and self.draw.random() < 0.3:
            path = self.draw.choice(sorted(chunks))
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
            self.torn.add(path)
            self.score.faults["torn chunk"] += 1

    def complete(self) -> int:
        return sum(map(len, self.marks().values())) if self.store.exists() else 0

    def marks(self) -> dict[str, list[int]]:
        import zarr

        try:
            group = zarr.open_group(self.store, mode="r", use_consolidated=False)
            found = {name: np.asarray(group[f"{name}_complete"][:]) for name in self.job.marks}
            return {name: np.flatnonzero(own.ravel()).tolist() for name, own in found.items()}
        except Exception:  # not created yet, or just being written
            return {}

    def written(self) -> dict[Path, tuple[int, bytes]]:
        """Chunks of unsharded complete steps: when they were written, and their bytes."""
        done = self.marks().get("faulty", [])
        paths = [self.store / "twice" / "c" / self.job.chunk(index) for index in done]
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths if p.exists()}

    def compare(self, before: dict[Path, tuple[int, bytes]]) -> None:
        """No chunk that was complete before this attempt was written again, but a torn one."""
        for path, (when, data) in before.items():
            if len(list(path.parent.parent.parent.iterdir())) < self.job.leads // 2:
                return  # shards: several steps to a file
            again = path.exists() and path.stat().st_mtime_ns != when
            if again and path in self.torn:
                self.torn.discard(path)
            elif again:
                self.score.twice += 1
                self.tell(f"written twice: {path}, same bytes: {path.read_bytes() == data}")

    def values(self) -> xr.Dataset:
        with xr.open_zarr(self.store) as store:
            return store.load()

    def tell(self, what: str) -> None:
        print(f"  {self.launch} x {self.ranks} in {self.folder}: {what}", flush=True)


def _cmdline(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return ""


def _rank(pid: int) -> int:
    """Rank of a process that a launcher started; 0 also for the launcher."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for name in (b"OMPI_COMM_WORLD_RANK=", b"RANK=", b"SLURM_PROCID="):
            for word in words:
                if word.startswith(name):
                    return int(word.removeprefix(name))
    return 0


def _stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return True


def undisturbed(job: Job) -> xr.Dataset:
    """The bytes that every run must have."""
    run = Run(random.Random(0), {}, Score(), job)
    run.launch, run.faults = "own", {}
    run.ranks = 1 if job.group == 1 else 2 * job.group
    assert run.attempt(run.command(), disturb=False) == 0, (run.folder / "log.txt").read_text()
    values = run.values()
    shutil.rmtree(run.folder)
    return values


@contextlib.contextmanager
def slurm(wanted: bool) -> Iterator[dict[str, str]]:
    """A Slurm of this machine, if it is wanted and there."""
    if wanted and not missing(*SLURM):
        with cluster() as environment:
            yield environment
    else:
        yield {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.chaos")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=JOBS, default="forecast")
    parser.add_argument("--engine", choices=["tensorpipe", "ray"], default="tensorpipe")
    parser.add_argument("--no-slurm", action="store_true", help="no run under srun")
    parser.add_argument("--faults", type=int, help="go on until there were as many")
    parser.add_argument("--json", type=Path, help="write the counts to this file, too")
    args = parser.parse_args()
    # A shell lets jobs in the background ignore it, and so all that these start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    score, began = Score(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="distinf-job-") as home,
        slurm(not args.no_slurm and args.engine == "tensorpipe") as environment,
    ):
        job = JOBS[args.job](Path(home))
        expected = undisturbed(job)
        number = 0
        while number < args.runs or (args.faults or 0) > score.faults.total():
            draw = random.Random(f"{args.seed} {number}")
            run = Run(draw, environment, score, job, args.engine)
            before, faults = score.bad, score.faults.total()
            run.to_its_end()
            if score.lost == 0 and not run.values().equals(expected):
                score.different += 1
                run.tell("its bytes differ")
            verdict = "bad" if score.bad > before else "good"
            faults = score.faults.total() - faults
            print(f"run {number}: {run.launch} x {run.ranks}, {faults} fault(s): {verdict}")
            sys.stdout.flush()
            if score.bad == before:
                shutil.rmtree(run.folder)
            number += 1
    print(
        f"\n{score.runs} runs, {score.attempts} attempts, {score.faults.total()} faults, "
        f"{time.monotonic() - began:.0f} s"
    )
    for what, count in sorted(score.faults.items()):
        print(f"  {count:4d} {what}")
    counts = {
        "tasks lost": score.lost,
        "tasks written twice": score.twice,
        "hangs": score.hangs,
        "leftovers": score.leftovers,
        "runs whose bytes differ": score.different,
        "exit status 0 of an incomplete run": score.untrue,
    }
    print("\n".join(f"{what}: {count}" for what, count in counts.items()))
    if args.json is not None:
        told = {"runs": score.runs, "attempts": score.attempts, "faults": dict(score.faults)}
        args.json.write_text(json.dumps({**told, **counts}, indent=2))
    return 1 if score.bad else 0


if __name__ == "__main__":
    sys.exit(main())

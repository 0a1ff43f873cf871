"""Every command of the pages of launchers, run by the real launchers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testing.pages import commands, copy_project
from testing.programs import SLURM
from tests.docs.running import blocks, pages, path_of, run_page, starts_processes
from tests.launchers.conftest import ended, skip_without, slurm  # noqa: F401
from tests.ranks.conftest import leaving_nothing

PAGES = [page for page in pages() if page.startswith("launchers/")]
NEEDED = {
    "launchers/mpirun.md": ("mpirun", *SLURM),
    "launchers/srun.md": SLURM,
    "launchers/slurm.md": SLURM,
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if starts_processes(p) else []) for p in PAGES],
)
def test_a_page_works_as_printed(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environment = {}
    if needed := NEEDED.get(page, ()):
        skip_without(*needed)
        environment = request.getfixturevalue("slurm")
    if page == "launchers/ray.md":
        pytest.importorskip("ray", reason="Ray is not installed")
    copy_project(tmp_path)
    with leaving_nothing(patience=60.0) as own:
        printed = run_page(page, tmp_path, set(), after=wait_for_jobs, **own, **environment)
    if page == "launchers/slurm.md":
        assert printed.count("Submitted batch job") == 2
        assert len(list(tmp_path.glob("multirun/*/*/*/shallow_water.zarr"))) == 2


def wait_for_jobs(printed: str, folder: Path, environment: dict[str, str]) -> None:
    """Wait for the batch jobs that a block has submitted; they must end well."""
    for job in re.findall(r"Submitted batch job (\d+)", printed):
        status = ended(job, environment)
        said = "\n".join(path.read_text() for path in folder.glob("slurm-*.out"))
        assert status == 0, said


def test_each_launcher_has_a_page_that_calls_it() -> None:
    for launcher in ("python", "torchrun", "mpirun", "srun"):
        page = path_of(f"launchers/{launcher}.md")
        calls = [words for block in blocks(page) for words in commands(block.text)]
        assert any(launcher in words for words in calls)

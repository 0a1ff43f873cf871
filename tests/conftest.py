"""What all tests share: one thread, hypothesis' profiles, and what was left out."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

# Before torch is imported: two threads on two busy cores take many times as long as one.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A slow machine is no error.
settings.register_profile("whole", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)

# A shell lets background jobs ignore this signal, and all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALL = 'uv run pytest -m "slow or not slow"'
RAY = "ray"
# Where the longest tests are; the first of them are begun first.
LONGEST = ("tests/docs/", "tests/launchers/", "tests/faults/", "tests/training/", "tests/ranks/")
LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what distinf logged: other libraries log whenever an object of theirs is collected."""
    return lambda: [entry.getMessage() for entry in caplog.records if entry.name == "distinf"]


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless browser that logs what pages do."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,999"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    quick = config.option.markexpr == "not slow"
    settings.load_profile("quick" if quick else "whole")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def turn(item: pytest.Item) -> int:
        if _share(item.nodeid) == RAY:
            return 0
        folder = [item.nodeid.startswith(name) for name in LONGEST]
        return 1 + (folder.index(True) if any(folder) else len(folder))

    items.sort(key=turn)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Share the tests among processes so that those with the same fixtures stay together.

    None: another ``--dist`` was given.
    """
    return Scheduling(config, log) if config.option.dist == "loadscope" else None


class Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _share(nodeid)


def _share(nodeid: str) -> str:
    """Return the file of a test, or one name for all tests that use Ray.

    ``ray symmetric-run`` refuses to start beside another cluster of Ray.
    """
    file = nodeid.partition("::")[0]
    on_ray = ("tests/engines/", "tests/launchers/test_store", "tests/docs/test_launchers")
    return RAY if file.startswith(on_ray) else file


@pytest.hookimpl(trylast=True)
def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            folder = item.path.parent.relative_to(item.config.rootpath)
            item.config.stash[LEFT_OUT][str(folder)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that reports what this one left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = Counter(left_out)  # the same in every process


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which slow tests were left out, and how to run them."""
    left_out = config.stash[LEFT_OUT]
    if config.option.markexpr == "not slow" and left_out:
        terminalreporter.section("left out")
        where = ", ".join(f"{folder} {count}" for folder, count in sorted(left_out.items()))
        terminalreporter.line(f"{left_out.total()} slow tests: {where}")
        terminalreporter.line(f"All tests: {ALL}")

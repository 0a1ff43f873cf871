"""What all tests share: one thread, hypothesis' profiles, and what was left out."""

import os
import signal
from collections import Counter
from collections.abc import Callable

# Before torch is imported: two threads on two busy cores take many times as long as one.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# A slow machine is no error.
settings.register_profile("whole", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)

# A shell lets background jobs ignore this signal, and all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALL = 'uv run pytest -m "slow or not slow"'
LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what distinf logged: other libraries log whenever an object of theirs is collected."""
    return lambda: [entry.getMessage() for entry in caplog.records if entry.name == "distinf"]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    quick = config.option.markexpr == "not slow"
    settings.load_profile("quick" if quick else "whole")


@pytest.hookimpl(trylast=True)
def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.config.stash[LEFT_OUT][item.nodeid.rpartition("/")[0]] += 1


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

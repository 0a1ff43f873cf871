"""Each promise of the README names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_promise_of_the_readme_names_tests_that_exist():
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("### What it promises")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = section.splitlines()[2:]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(tests/\S+?)::(\w+)`", row)
        assert named, row
        for path, test in named:
            assert f"\ndef {test}(" in (ROOT / path).read_text(), (path, test)

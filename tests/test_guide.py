"""docs/custom_applications.md, run as it is printed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from testing import application

GUIDE = (application.ROOT / "docs" / "custom_applications.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^Save as `(.+?)`:\n\n```python\n(.*?)^```", GUIDE, re.M | re.S))
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.M | re.S)
    for line in block.splitlines()
]
EXPECTED = {
    "python application.py": "calls of the workers: 5",
    "torchrun": "calls of the workers: 5",
    "python stored.py": "",
    "python -c": "[[",
    "python main.py": "Limited by",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("guide")
    for name, text in FILES.items():
        (home / name).write_text(text)
    shutil.copy(application.ROOT / "main.py", home)
    for name in ("cfg", "recipes"):
        shutil.copytree(application.ROOT / name, home / name)
    return home


def test_every_block_of_code_is_a_file_or_a_command() -> None:
    assert sorted(FILES) == ["application.py", "stored.py", "strong_wind.py"]
    assert GUIDE.count("\n```python\n") == len(FILES)
    assert len(COMMANDS) == len(EXPECTED)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda line: " ".join(line.split()[:2]))
def test_a_command_works_as_printed(command: str, folder: Path) -> None:
    # The interpreter that runs the tests is the one whose `python` and `torchrun` are meant.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = application.run(["bash", "-c", command], folder, deadline=300, PATH=path)
    assert done.status == 0, done.err
    expected = next(text for start, text in EXPECTED.items() if command.startswith(start))
    assert expected in done.out


@pytest.mark.slow
def test_what_the_guide_says_of_an_error_is_so(folder: Path) -> None:
    text = FILES["application.py"].replace("StrongWind, 60.0", "StrongWind, 'high'")
    (folder / "wrong.py").write_text(text)
    done = application.run([sys.executable, "wrong.py"], folder, deadline=250)
    assert done.status != 0
    assert re.search(r"StrongWind.* on rank [12] \(.+\), attempt 1: TypeError", done.err)
    assert "Traceback on rank" in done.err

"""Pages of docs/ with worked examples, run as they are printed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from testing import application


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", ["archive.md", "drivers.md"])
def test_its_commands_work_as_printed(page: str, tmp_path: Path) -> None:
    text = (application.ROOT / "docs" / page).read_text(encoding="utf-8")
    for name in ("main.py", "cfg", "recipes"):
        (tmp_path / name).symlink_to(application.ROOT / name)
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = application.run(["bash", "-ec", block], tmp_path, deadline=300, PATH=path)
    assert done.status == 0, done.err
    shown = done.out.rpartition("[[")[2]  # one value for each of nine lead times
    assert len(re.findall(r"\d\.\d*(?:e[+-]\d+)?", shown)) == 9, shown
    assert "nan" not in shown

"""docs/archive.md, run as it is printed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from testing import application

PAGE = (application.ROOT / "docs" / "archive.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_its_commands_work_as_printed(tmp_path: Path) -> None:
    for name in ("main.py", "cfg", "recipes"):
        (tmp_path / name).symlink_to(application.ROOT / name)
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = application.run(["bash", "-ec", block], tmp_path, deadline=300, PATH=path)
    assert done.status == 0, done.err
    shown = done.out.splitlines()[-1]
    assert len(re.findall(r"\d+\.\d+", "\n".join(done.out.splitlines()[-2:]))) == 9, shown
    assert "nan" not in shown

"""Runs the commands of start.md and gallery.md, which make the pictures of the gallery.

They run in ``_build/gallery``, once: a picture that is there is not made again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.util import logging

from testing.pages import blocks, command, copy_project

PAGES = ("start.md", "gallery.md")
SAID = logging.getLogger(__name__)


def make(app: Any) -> None:
    """Run the blocks of both pages, unless all pictures are there."""
    source = Path(app.srcdir)
    pictures = re.findall(r"\((_build/gallery/\S+)\)", (source / PAGES[-1]).read_text("utf-8"))
    if all((source / picture).exists() for picture in pictures):
        return
    folder = source / "_build" / "gallery"
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier, failed build has left
    copy_project(folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MPLBACKEND": "agg"}
    for page in PAGES:
        for block in blocks(source / page):
            if block.mark or block.language not in ("bash", "python"):
                continue
            SAID.info("gallery: %s", block.text.splitlines()[0])
            words = ["bash", "-ec", command(block.text)]
            if block.language == "python":
                words = [sys.executable, "-c", block.text]
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise ExtensionError(f"{page}: {block.text}\n{done.stderr}")


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call `make` before it looks for pages and pictures."""
    app.connect("builder-inited", make)
    return {"parallel_read_safe": True}

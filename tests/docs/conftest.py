"""The modules of docs/_ext, as Sphinx finds them."""

import sys

from testing.application import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

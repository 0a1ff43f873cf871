"""The command that installs a package into this environment."""

import sys

from distinf.versions import install_command


def test_an_environment_without_pip_is_one_of_uv(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pip", raising=False)
    assert install_command("earth2studio[sfno]") == "uv pip install 'earth2studio[sfno]'"
    (tmp_path / "pip.py").touch()
    assert install_command("mlflow") == "pip install mlflow"

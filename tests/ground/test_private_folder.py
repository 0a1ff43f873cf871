"""Nobody else reads or replaces what the processes of one user tell each other."""

import os

import pytest

from distinf.errors import ConfigError, SessionError
from distinf.loading import packages
from distinf.session import rendezvous

PRIVATE = {
    packages: (lambda: packages._lock("a").acquire(), ConfigError),
    rendezvous: (lambda: rendezvous.port_in_file("a", 1).__enter__(), SessionError),
}


@pytest.mark.parametrize("module", PRIVATE, ids=lambda module: module.__name__)
@pytest.mark.parametrize("kind", ["open", "link", "dangling", "file", "another's"])
def test_a_folder_that_others_may_reach_is_not_used(tmp_path, monkeypatch, module, kind):
    use, error = PRIVATE[module]
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    user = os.getuid() + (kind == "another's")
    monkeypatch.setattr(os, "getuid", lambda: user)
    folder, other = tmp_path / f"distinf-{user}", tmp_path / "other"
    other.mkdir(mode=0o700)
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        folder.symlink_to(other)
    elif kind == "dangling":
        folder.symlink_to(tmp_path / "gone")
    else:
        folder.mkdir(mode=0o700)
        if kind == "open":
            folder.chmod(0o777)
    with pytest.raises(error, match=r"distinf-\d+ must be a folder that belongs to user"):
        use()
    assert os.listdir(other) == []

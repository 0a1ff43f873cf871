"""The driver's port is found, by its own ranks only, and nothing is left behind."""

import os
import socket
import threading
import time

import pytest

from distinf.errors import ConfigError, SessionError
from distinf.session import announce, network, port_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"distinf-{os.getuid()}"


def soon(seconds=5.0):
    return time.monotonic() + seconds


def test_the_port_is_read_while_it_is_published(folder):
    with port_file.published("a", 4711):
        assert port_file.read("a", soon()) == 4711
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    with pytest.raises(TimeoutError, match=r"a\.port"):
        port_file.read("a", soon(0.1))


def test_readers_may_come_first():
    found = []
    reader = threading.Thread(target=lambda: found.append(port_file.read("a", soon())))
    reader.start()
    with port_file.published("a", 4711):
        reader.join(5)
    assert found == [4711]


def test_a_leftover_is_not_read_but_replaced(folder):
    folder.mkdir(mode=0o700)
    (folder / "a.port").write_text('{"port": 1, "pid": 1}')
    with pytest.raises(TimeoutError):
        port_file.read("a", soon(0.1))
    with port_file.published("a", 4711):
        assert port_file.read("a", soon()) == 4711


def test_two_drivers_of_one_launch_are_refused():
    with port_file.published("a", 4711), port_file.published("b", 4712):
        assert (port_file.read("a", soon()), port_file.read("b", soon())) == (4711, 4712)
        with (
            pytest.raises(SessionError, match=f"same launcher .*{os.getpid()}"),
            port_file.published("a", 4713),
        ):
            pass
        assert port_file.read("a", soon()) == 4711


def test_a_folder_that_others_may_enter_is_refused(folder):
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    with (
        pytest.raises(SessionError, match="nobody else may enter"),
        port_file.published("a", 1),
    ):
        pass


def test_ranks_of_a_launch_find_its_driver_among_others():
    with announce.announced("a", "127.0.0.1", 4711), announce.announced("b", "127.0.0.1", 4712):
        assert announce.ask("a", ("127.0.0.1",), soon()) == ("127.0.0.1", 4711)
        assert announce.ask("b", ("127.0.0.1",), soon()) == ("127.0.0.1", 4712)
    with announce.announced("a", "127.0.0.1", 4713):  # the next session
        assert announce.ask("a", ("127.0.0.1",), soon()) == ("127.0.0.1", 4713)


def test_another_program_on_the_port_is_passed_over():
    with socket.create_server(("127.0.0.1", announce.ports_of("a")[0])) as other:

        def answer():
            while True:
                try:
                    other.accept()[0].sendall(b"220 ready\n")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        with announce.announced("a", "127.0.0.1", 4711):
            assert announce.ask("a", ("127.0.0.1",), soon(20))[1] == 4711
        other.shutdown(socket.SHUT_RDWR)


def test_another_run_on_the_port_is_told(monkeypatch):
    monkeypatch.setattr(announce, "ports_of", lambda job: [23456])
    with (
        announce.announced("b", "127.0.0.1", 4711),
        pytest.raises(TimeoutError, match="another run of distinf answers"),
    ):
        announce.ask("a", ("127.0.0.1",), soon(0.5))
    with (
        announce.announced("b", "127.0.0.1", 1),
        pytest.raises(SessionError, match=r"23456.*MASTER_PORT"),
        announce.announced("a", "127.0.0.1", 1),
    ):
        pass


def test_an_interface_that_is_not_there_is_an_error_that_lists_the_others():
    network.check_interface("lo")
    with pytest.raises(ConfigError, match=r"runtime\.interface=eht0 .* lo"):
        network.check_interface("eht0")


def test_the_way_to_loopback_is_loopback(monkeypatch):
    monkeypatch.delenv("TP_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert network.address_towards("127.0.0.1") == "127.0.0.1"
    network.use_route("127.0.0.1")
    assert os.environ["TP_SOCKET_IFNAME"] == os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_name_that_is_loopback_here_is_not_where_others_find_this_machine():
    assert network.bind_address("localhost") == "0.0.0.0"
    assert network.bind_address("localhost", on_one_node=True) == "127.0.0.1"
    assert network.bind_address("127.0.0.1") == "127.0.0.1"

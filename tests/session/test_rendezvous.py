"""The driver's port is found, by its own ranks only, and nothing is left behind."""

import os
import socket
import threading
import time

import pytest

from distinf.errors import ConfigError, SessionError
from distinf.session import network, rendezvous


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"distinf-{os.getuid()}"


def soon(seconds=5.0):
    return time.monotonic() + seconds


def test_the_port_is_read_while_it_is_published(folder):
    with rendezvous.port_in_file("a", 4711):
        assert rendezvous.read_port("a", soon()) == 4711
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    with pytest.raises(TimeoutError, match=r"a\.port"):
        rendezvous.read_port("a", soon(0.1))


def test_readers_may_come_first():
    found = []
    reader = threading.Thread(target=lambda: found.append(rendezvous.read_port("a", soon())))
    reader.start()
    with rendezvous.port_in_file("a", 4711):
        reader.join(5)
    assert found == [4711]


def test_a_leftover_is_not_read_but_replaced(folder):
    folder.mkdir(mode=0o700)
    (folder / "a.port").write_text('{"port": 1, "pid": 1}')
    with pytest.raises(TimeoutError):
        rendezvous.read_port("a", soon(0.1))
    with rendezvous.port_in_file("a", 4711):
        assert rendezvous.read_port("a", soon()) == 4711


def test_two_drivers_of_one_launch_are_refused():
    with rendezvous.port_in_file("a", 4711), rendezvous.port_in_file("b", 4712):
        assert (rendezvous.read_port("a", soon()), rendezvous.read_port("b", soon())) == (
            4711,
            4712,
        )
        with (
            pytest.raises(SessionError, match=f"same launcher .*{os.getpid()}"),
            rendezvous.port_in_file("a", 4713),
        ):
            pass
        assert rendezvous.read_port("a", soon()) == 4711


def test_a_folder_that_others_may_enter_is_refused(folder):
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    with (
        pytest.raises(SessionError, match="nobody else may enter"),
        rendezvous.port_in_file("a", 1),
    ):
        pass


def test_ranks_of_a_launch_find_its_driver_among_others():
    with rendezvous.announced("a", "127.0.0.1", 4711), rendezvous.announced("b", "127.0.0.1", 4712):
        assert rendezvous.ask_port("a", ("127.0.0.1",), soon()) == ("127.0.0.1", 4711)
        assert rendezvous.ask_port("b", ("127.0.0.1",), soon()) == ("127.0.0.1", 4712)
    with rendezvous.announced("a", "127.0.0.1", 4713):  # the next session
        assert rendezvous.ask_port("a", ("127.0.0.1",), soon()) == ("127.0.0.1", 4713)


def test_another_program_on_the_port_is_passed_over():
    with socket.create_server(("127.0.0.1", rendezvous.announcement_ports("a")[0])) as other:

        def answer():
            while True:
                try:
                    other.accept()[0].sendall(b"220 ready\n")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        with rendezvous.announced("a", "127.0.0.1", 4711):
            assert rendezvous.ask_port("a", ("127.0.0.1",), soon(20))[1] == 4711
        other.shutdown(socket.SHUT_RDWR)


def test_another_run_on_the_port_is_told(monkeypatch):
    monkeypatch.setattr(rendezvous, "announcement_ports", lambda job: [23456])
    with (
        rendezvous.announced("b", "127.0.0.1", 4711),
        pytest.raises(TimeoutError, match="another run of distinf answers"),
    ):
        rendezvous.ask_port("a", ("127.0.0.1",), soon(0.5))
    with (
        rendezvous.announced("b", "127.0.0.1", 1),
        pytest.raises(SessionError, match=r"23456.*MASTER_PORT"),
        rendezvous.announced("a", "127.0.0.1", 1),
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
    with network.interface_restored():
        network.use_route("127.0.0.1")
        assert os.environ["TP_SOCKET_IFNAME"] == os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert "TP_SOCKET_IFNAME" not in os.environ


def test_a_name_that_is_loopback_here_is_not_where_others_find_this_machine():
    assert network.bind_address("localhost") == "0.0.0.0"
    assert network.bind_address("localhost", on_one_node=True) == "127.0.0.1"
    assert network.bind_address("127.0.0.1") == "127.0.0.1"

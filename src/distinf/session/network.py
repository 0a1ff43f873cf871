"""Addresses and interfaces of this machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from distinf.errors import ConfigError

LOOPBACK = "127.0.0.1"
# Where TensorPipe, gloo and NCCL listen; by default on the address that the host name resolves to.
_VARIABLES = ("TP_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def listen(address: str, port: int = 0) -> socket.socket:
    """Open a listening socket, by default on a free port; many ranks may connect at once."""
    return socket.create_server((address, port), backlog=1024)


def check_interface(name: str) -> None:
    """Refuse an interface that this machine does not have, and list those that it has."""
    names = [interface for _, interface in socket.if_nameindex()]
    if name not in names:
        raise ConfigError(
            f"runtime.interface={name} does not exist on {socket.gethostname()}; its interfaces "
            f"are {', '.join(sorted(names))}"
        )


@contextmanager
def interface_restored() -> Iterator[None]:
    """Restore the interface after the block, so that a later session chooses its own."""
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        for variable in _VARIABLES:
            os.environ.pop(variable, None)
        os.environ.update(given)


def use_interface(name: str) -> None:
    """Make TensorPipe, gloo and NCCL listen on one interface only, in this process."""
    for variable in _VARIABLES:
        if variable != "NCCL_SOCKET_IFNAME":
            os.environ[variable] = name
        elif variable not in os.environ:  # clusters set it
            os.environ[variable] = f"={name}"  # without the sign it is the beginning of a name


def use_route(address: str) -> None:
    """Make TensorPipe, gloo and NCCL listen on the interface that leads to an address."""
    own = address_towards(address)
    for name, known in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == own for one in known):
            use_interface(name)
            return
    if own and ipaddress.ip_address(own).is_loopback:
        use_interface("lo")


def address_towards(host: str) -> str:
    """Return this machine's IPv4 address on the way to a host; empty if there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))  # sends nothing, only looks up the route
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def bind_address(host: str, on_one_node: bool = False) -> str:
    """Return the address to listen on, so that other ranks reach this machine as ``host``.

    Where ``host`` is loopback here (many systems resolve their own name so) or no address of this
    machine, this is ``"0.0.0.0"``: all addresses.
    """
    try:
        address = socket.gethostbyname(host)
        if ipaddress.ip_address(address).is_loopback and host != address and not on_one_node:
            return "0.0.0.0"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
        return address
    except OSError:
        return "0.0.0.0"

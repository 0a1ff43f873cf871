"""Addresses and interfaces of this machine."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct

from distinf.errors import ConfigError

__all__ = ["address_towards", "bind_address", "check_interface", "use_interface", "use_route"]

_SIOCGIFADDR = 0x8915  # Linux's netdevice(7): an interface's IPv4 address
# Where TensorPipe and gloo listen; without them, on what the host name resolves to.
_VARIABLES = ("TP_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def check_interface(name: str) -> None:
    """Refuse an interface that this machine does not have, and list those that it has."""
    names = [interface for _, interface in socket.if_nameindex()]
    if name not in names:
        raise ConfigError(
            f"runtime.interface={name} does not exist on {socket.gethostname()}; its interfaces "
            f"are {', '.join(sorted(names))}"
        )


def use_interface(name: str) -> None:
    """Make TensorPipe and gloo listen on one interface only, in this process."""
    for variable in _VARIABLES:
        os.environ[variable] = name


def use_route(address: str) -> None:
    """Make TensorPipe and gloo listen on the interface that leads to an address."""
    name = _interface_of(address_towards(address))
    if name is not None:
        use_interface(name)


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


def _interface_of(address: str) -> str | None:
    if not address:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo" if ipaddress.ip_address(address).is_loopback else None

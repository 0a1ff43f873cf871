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
# What TensorPipe and gloo bind to; else it is whatever the host name resolves to.
_VARIABLES = ("TP_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def check_interface(name: str) -> None:
    """Refuse an interface that this machine does not have.

    Raises
    ------
    ConfigError
        Lists those that it has.
    """
    names = [interface for _, interface in socket.if_nameindex()]
    if name not in names:
        raise ConfigError(
            f"runtime.interface={name} does not exist on {socket.gethostname()}; its interfaces "
            f"are {', '.join(sorted(names))}"
        )


def use_interface(name: str) -> None:
    """Let this process's transports listen on one interface only."""
    for variable in _VARIABLES:
        os.environ[variable] = name


def use_route(address: str) -> None:
    """Let this process's transports listen on the interface that leads to an address."""
    name = _interface_of(address_towards(address))
    if name is not None:
        use_interface(name)


def address_towards(host: str) -> str:
    """Return this machine's IPv4 address on the way to a host; empty if there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))  # nothing is sent: the system only looks for a route
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def bind_address(host: str, on_one_node: bool = False) -> str:
    """Where to listen so that others reach this machine under a name.

    Parameters
    ----------
    host : str
        The name or address under which they look for it.
    on_one_node : bool, optional
        Whether they are all on this machine, by default False.

    Returns
    -------
    str
        The one address that it stands for; all addresses where it is loopback here, as many
        systems resolve their own name, or no address of this machine.
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

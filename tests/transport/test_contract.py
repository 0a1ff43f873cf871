"""Every transport has what the contract says, the one that tests use, too."""

import inspect

import pytest

from distinf.transport import InProcess, RpcTransport, Transport
from tests.fake_transport import FakeTransport


@pytest.mark.parametrize("transport", [InProcess, RpcTransport, FakeTransport])
def test_a_transport_has_the_methods_of_the_contract(transport):
    public = {
        name: method
        for name, method in vars(Transport).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert {"empty", "expect", "send", "ping", "mark_lost", "close"} <= set(public)
    for name, method in public.items():
        own = inspect.signature(getattr(transport, name)).parameters
        wanted = inspect.signature(method).parameters
        assert [(p.name, p.default) for p in own.values()] == [
            (p.name, p.default) for p in wanted.values()
        ]

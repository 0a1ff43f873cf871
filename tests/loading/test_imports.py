"""Imports of Earth2Studio: what its models read of the call stack stays true."""

from __future__ import annotations

import gc
import inspect

import pytest

from distinf.loading import imports


def caller() -> inspect.FrameInfo:
    return inspect.stack()[1]


def test_the_call_stack_has_the_same_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(imports.importlib, "import_module", lambda _: found.append(caller()))
    imports.import_first("earth2studio.data.GFS")
    (during,) = found
    assert during.filename == __file__
    assert during.code_context is None
    assert caller().code_context


@pytest.mark.parametrize("wanted", [True, False])
def test_garbage_is_looked_for_as_before_once_all_is_imported(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    during: list[bool] = []
    monkeypatch.setattr(imports.importlib, "import_module", lambda _: during.append(gc.isenabled()))
    before = gc.isenabled()
    try:
        (gc.enable if wanted else gc.disable)()
        imports.import_first("earth2studio.data.GFS")
        assert gc.isenabled() is wanted
    finally:
        gc.enable() if before else gc.disable()
    assert during == [False]

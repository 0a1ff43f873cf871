"""torch's compiler is imported when something compiles, and then works as ever."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from testing.application import environment

FIRST = """
import json, sys
import torch
from distinf.compiler import delayed_compiler, import_early
own = torch.compile, torch.compiler.allow_in_graph
"""
PLAIN = "import physicsnemo.distributed, torch_harmonics\n"
EARLY = """
import_early("physicsnemo.distributed", "torch_harmonics")
assert "torch._dynamo" not in sys.modules
"""
MARKS = """
import torch._dynamo
from torch._dynamo import trace_rules
import tensordict.utils
allowed = trace_rules._allowed_callable_ids
marked = [name for name, f in vars(tensordict.utils).items() if id(f) in allowed]
constant = [
    f"{module}.{name}"
    for module in sys.modules
    if module.startswith("tensordict")
    for name, f in vars(sys.modules[module]).items()
    if getattr(f, "_dynamo_marked_constant", False)
]
print(json.dumps([sorted(marked), sorted(constant)]))
"""


def run(*parts: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "".join([FIRST, *parts])],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_imports_leave_it_out_and_torch_as_it_was() -> None:
    run(EARLY, "assert own == (torch.compile, torch.compiler.allow_in_graph)")


@pytest.mark.slow
def test_what_the_imports_say_to_it_is_not_lost() -> None:
    delayed, plain = (json.loads(run(how, MARKS)) for how in (EARLY, PLAIN))
    assert delayed == plain
    assert plain[0]


@pytest.mark.slow
def test_a_function_compiled_in_the_block_is_compiled_when_it_is_called() -> None:
    run("""
with delayed_compiler():
    class Model:
        @torch.compile
        def plain(self, x):
            return x + 1
        counted = 0
    options = torch.compile(backend="eager")
    def backend(graph, inputs):
        Model.counted += 1
        return graph.forward
    Model.later = torch.compile(lambda self, x: 2 * x, backend=backend)
    Model.plain = torch.compile(Model.__dict__["plain"].__wrapped__, backend="eager")
x = torch.ones(2)
assert Model.counted == 0
model = Model()
assert model.later(x).tolist() == [2, 2]
assert model.later(x).tolist() == [2, 2]
assert Model.counted == 1
assert model.plain(x).tolist() == [2, 2]
assert options(lambda x: 3 * x)(x).tolist() == [3, 3]
assert "torch._dynamo" in sys.modules
""")


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_two_threads_may_import_at_once(first: int) -> None:
    run(f"""
blocks = [delayed_compiler(), delayed_compiler()]
for block in blocks:
    block.__enter__()
assert torch.compile is not own[0]
blocks[{first}].__exit__(None, None, None)
assert torch.compile is not own[0]
blocks[{1 - first}].__exit__(None, None, None)
assert own == (torch.compile, torch.compiler.allow_in_graph)
""")


@pytest.mark.slow
def test_a_block_after_the_compiler_was_imported_changes_nothing() -> None:
    run("""
import torch._dynamo
with delayed_compiler():
    assert own == (torch.compile, torch.compiler.allow_in_graph)
assert own == (torch.compile, torch.compiler.allow_in_graph)
""")

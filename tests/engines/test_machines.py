"""Ray on two machines with addresses, processes and memory of their own, started as Slurm would."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from testing import application
from testing.machines import lacking, two_machines
from tests.engines.conftest import OnRay
from tests.launchers.conftest import STORE, TINY, alone, chunks

__all__ = ["alone"]  # a fixture

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]
PORT = "6379"


def test_symmetric_run_gives_the_same_bytes(on_ray: OnRay, alone: dict[str, bytes]) -> None:
    if why := lacking():
        pytest.skip(why)
    token = on_ray.folder / "token"
    token.write_text(uuid.uuid4().hex)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ray = ["ray", "symmetric-run"]
    main = application.python_main(
        "--config-name=shallow_water", *TINY, "runtime.engine=ray", "runtime.workers=[1,1]"
    )
    # The path of a socket must be short.
    with TemporaryDirectory(prefix="distinf-") as short, two_machines() as machines:
        started = []
        for cpus, machine in zip((0, 1), machines, strict=True):
            address = f"--address={machines[0].address}:{PORT}"
            command = machine.command(
                *(*ray, address, f"--num-cpus={cpus}", "--", *main),
                PATH=path,
                RAY_TMPDIR=f"{short}/{cpus}",
                RAY_AUTH_MODE="token",
                RAY_gcs_rpc_server_reconnect_timeout_s="5",  # 60 until the second machine ends
                RAY_AUTH_TOKEN_PATH=str(token),
            )
            started.append(on_ray.start(command))
        first, second = (application.finish(process, 200) for process in started)
    assert first.status == 0, first.out + first.err
    assert second.status == 0, second.out + second.err
    assert "2 rank(s) by ray, carrier ray, " in first.out + first.err  # not by shared memory
    assert "without authentication" not in first.out + first.err
    assert chunks(on_ray.folder / STORE) == alone

"""A small store of states and targets, the words that train on it, and what a training leaves."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import xarray as xr

TIMES = np.array(["2023-06-01", "2023-06-02", "2023-06-03", "2023-06-04"], "M8[ns]")
LEADS = np.array([0, 6, 12], "m8[h]").astype("m8[ns]")
LAT, LON = np.linspace(90, -90, 9), np.linspace(0, 360, 16, endpoint=False)
SMALL = (
    *("--config-name=train", "data.path=in.zarr", "data.inputs=[u850,v850]", "data.target=ke"),
    *("data.held_out=2023-06-04", "network.latent_channels=4", "network.num_fno_layers=1"),
    *("network.num_fno_modes=3", "network.padding=[2,0]", "network.decoder_layer_size=8"),
    *("training.epochs=4", "training.learning_rate=2e-2"),
)


def dataset(seed: int = 0, times: np.ndarray = TIMES) -> xr.Dataset:
    """Smooth random winds, and half the square of their speed."""
    rng = np.random.default_rng(seed)
    shape = (2, len(times), len(LEADS), len(LAT), len(LON))
    waves = np.exp(2j * np.pi * np.outer(np.arange(3), np.arange(len(LON))) / len(LON))
    winds = {}
    for name in ("u850", "v850"):
        sizes = rng.normal(size=(*shape[:-1], 3)) + 1j * rng.normal(size=(*shape[:-1], 3))
        winds[name] = (sizes @ waves).real * 5 + 10
    fields = {**winds, "ke": (winds["u850"] ** 2 + winds["v850"] ** 2) / 2}
    dims = ("ensemble", "time", "lead_time", "lat", "lon")
    coords = dict(zip(dims, (np.arange(2), times, LEADS, LAT, LON), strict=True))
    made = xr.Dataset({k: (dims, v.astype("f4")) for k, v in fields.items()}, coords)
    made.ke.attrs = {"units": "m2 s-2", "long_name": "kinetic energy"}
    return made


def make(folder: Path, name: str = "in.zarr", **options: np.ndarray) -> xr.Dataset:
    """Write such a store, one chunk for each step."""
    made = dataset(**options)
    chunks = {name: {"chunks": (1, 1, 1, len(LAT), len(LON))} for name in made}
    made.to_zarr(folder / name, encoding=chunks)
    return made


def package(folder: Path) -> list[bytes]:
    """The files of a package whose bytes are promised."""
    return [(folder / name).read_bytes() for name in ("network.mdlus", "package.json")]


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a training has written a checkpoint."""
    deadline = time.monotonic() + 120
    while not path.exists():
        # A later epoch has taken its place.
        if any(other.name > path.name for other in path.parent.glob("epoch_*")):
            return
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)

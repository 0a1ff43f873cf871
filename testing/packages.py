"""Genuine packages of Earth2Studio's models, small and with seeded weights.

Each is what the model's own ``load_model`` reads, so that the models run through the code that
they run through with trained weights.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

LAT = np.linspace(90, -90, 721)
LON = np.linspace(0, 360, 1440, endpoint=False)
# fmt: off
FCN_VARIABLES = [
    "u10m", "v10m", "t2m", "sp", "msl", "t850", "u1000", "v1000", "z1000", "u850", "v850",
    "z850", "u500", "v500", "z500", "t500", "z50", "r500", "r850", "tcwv", "u100m", "v100m",
    "u250", "v250", "z250", "t250",
]
GUST_VARIABLES = [
    "u100m", "v100m", "msl", "u300", "u850", "u925", "v300", "v850", "v925", "z300", "z850",
    "z925", "t850", "t925", "q500", "q850", "q925",
]
# fmt: on
CORRDIFF_INPUTS = ["u10m", "v10m", "t2m"]


def fields_file(path: Path, times: Sequence[str]) -> Path:
    """Fields on the grid of GFS: float32 [time, variable, lat, lon]."""
    variables = list(dict.fromkeys([*FCN_VARIABLES, *GUST_VARIABLES]))
    rng = np.random.default_rng(7)
    shape = (len(times), len(variables), len(LAT), len(LON))
    coords = {
        "time": np.array(times, dtype="datetime64[ns]"),
        "variable": variables,
        "lat": LAT,
        "lon": LON,
    }
    data = rng.standard_normal(shape, dtype=np.float32)
    xr.DataArray(data, coords, list(coords), "fields").to_netcdf(path)
    return path


# Of FourCastNet as it was published, and small.
FULL_AFNO = {"patch_size": [8, 8], "embed_dim": 768, "depth": 12, "num_blocks": 8}
SMALL_AFNO = {"patch_size": [16, 16], "embed_dim": 64, "depth": 2, "num_blocks": 8}


def fcn(folder: Path, size: dict[str, Any] = SMALL_AFNO) -> Path:
    """FourCastNet: fcn.mdlus and the normalisation of 26 variables."""
    from physicsnemo.models.afno import AFNO

    _seed(folder)
    model = AFNO([720, 1440], 26, 26, **size)
    model.save(str(folder / "fcn.mdlus"))
    _normalisation(folder, 26)
    return folder


def climatenet(folder: Path) -> Path:
    """ClimateNet: a zip file with a folder, as in the registry."""
    from earth2studio.models.nn.climatenet_conv import CGNetModule

    _seed(folder)
    inner = folder / "made" / "climatenet"
    inner.mkdir(parents=True)
    torch.save(CGNetModule(channels=4, classes=3).state_dict(), inner / "weights.tar")
    _normalisation(inner, 4)
    with zipfile.ZipFile(folder / "climatenet.zip", "w") as archive:
        for path in sorted(inner.iterdir()):
            archive.write(path, f"climatenet/{path.name}")
    return folder


def wind_gust(folder: Path) -> Path:
    """WindgustAFNO: with its invariants on 721 rows, of which it drops the last."""
    from physicsnemo.models.afno import AFNO

    _seed(folder)
    model = AFNO([720, 1440], 20, 1, patch_size=[16, 16], embed_dim=64, depth=2, num_blocks=8)
    model.save(str(folder / "afno_windgust_1h.mdlus"))
    _normalisation(folder, 17)
    rng = np.random.default_rng(5)
    for file, name in (("land_sea_mask", "LSM"), ("orography", "Z")):
        data = rng.random((1, 721, 1440), dtype=np.float32)
        coords = {"time": [np.datetime64("2020-01-01", "ns")], "latitude": LAT, "longitude": LON}
        array = xr.DataArray(data, coords, list(coords), name)
        array.to_netcdf(folder / f"{file}.nc")
    return folder


def precipitation(folder: Path) -> Path:
    """PrecipitationAFNO: a zip file with 74 million weights, since its size is in its loader."""
    from earth2studio.models.nn.afno_precip import PrecipNet

    _seed(folder)
    inner = folder / "made" / "precipitation_afno"
    inner.mkdir(parents=True)
    model = PrecipNet([720, 1440], 20, 1, patch_size=[8, 8], embed_dim=768)
    model.save(str(inner / "precipitation_afno.mdlus"))
    _normalisation(inner, 20)
    with zipfile.ZipFile(folder / "precipitation_afno.zip", "w") as archive:
        for path in sorted(inner.iterdir()):
            archive.write(path, f"precipitation_afno/{path.name}")
    return folder


# Of CorrDiff over Taiwan as it was published, but for its weights, and small.
FULL_CORRDIFF = {"size": 448, "steps": 18, "samples": 1, "unet": {"model_channels": 128}}


def corrdiff(
    folder: Path,
    seed: int | None = 3,
    size: int = 64,
    steps: int = 3,
    samples: int = 2,
    unet: dict[str, Any] | None = None,
) -> Path:
    """CorrDiff: by default 64 x 64 on a rotated grid, two samples."""
    from physicsnemo.diffusion.preconditioners.legacy import EDMPrecondSuperResolution
    from physicsnemo.models.diffusion_unets import CorrDiffRegressionUNet

    _seed(folder)
    inputs, outputs = len(CORRDIFF_INPUTS) + 1, 2
    small: dict[str, Any] = {
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [],
    }
    layers: dict[str, Any] = {"model_type": "SongUNet", **(small if unet is None else unet)}
    regression = CorrDiffRegressionUNet([size, size], inputs, outputs, **layers)
    regression.save(str(folder / "regression.mdlus"))
    diffusion = EDMPrecondSuperResolution([size, size], inputs + outputs, outputs, **layers)
    diffusion.save(str(folder / "diffusion.mdlus"))
    y, x = np.meshgrid(np.linspace(0, 6, size), np.linspace(0, 6, size), indexing="ij")
    lat, lon = 22 + y + 0.1 * x, 118 + x - 0.1 * y
    grid = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    xr.Dataset(grid).to_netcdf(folder / "output_latlon_grid.nc")
    xr.Dataset({"height": (("y", "x"), np.sin(y).astype(np.float32))}).to_netcdf(
        folder / "invariants.nc"
    )
    names = ["precipitation_rate", "gust"]
    metadata = {
        "input_variables": CORRDIFF_INPUTS,
        "output_variables": names,
        "latlon_res": 0.25,
        "number_of_samples": samples,
        "number_of_steps": steps,
        "seed": seed,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    same = {"mean": 0.1, "std": 1.5}
    stats = {
        "input": dict.fromkeys(CORRDIFF_INPUTS, same),
        "output": dict.fromkeys(names, same),
        "invariants": {"height": same},
    }
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


def small_precipitation() -> Any:
    """PrecipitationAFNO by its constructor, since its package holds 74 million weights."""
    from earth2studio.models.dx import PrecipitationAFNO
    from earth2studio.models.nn.afno_precip import PrecipNet

    torch.manual_seed(11)
    core = PrecipNet([720, 1440], 20, 1, patch_size=(16, 16), embed_dim=32).eval()
    return PrecipitationAFNO(core, torch.zeros(20, 1, 1), torch.ones(20, 1, 1))


def _seed(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2023)


def _normalisation(folder: Path, variables: int) -> None:
    rng = np.random.default_rng(variables)
    shape = (1, variables, 1, 1)
    np.save(folder / "global_means.npy", rng.standard_normal(shape).astype(np.float32))
    np.save(folder / "global_stds.npy", 1 + rng.random(shape).astype(np.float32))

"""A network that was trained here, as a diagnostic model."""

from __future__ import annotations

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from earth2studio.models.auto import AutoModelMixin, Package
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim

from distinf.compiler import delayed_compiler
from distinf.coords import Coords, State
from distinf.errors import ConfigError

_NETWORK, _PACKAGE = "network.mdlus", "package.json"
_VERSION = 1
_DATE = (1980, 1, 1, 0, 0, 0)  # the first one that a zip file can hold


class Trained(torch.nn.Module, AutoModelMixin):  # type: ignore[misc]
    """A network between normalised fields on one grid, as ``recipe=train`` makes it.

    Parameters
    ----------
    network : torch.nn.Module | None
        From [batch, input, lat, lon] to [batch, target, lat, lon], both normalised, float32; None:
        only its coordinates are wanted.
    inputs : Mapping[str, tuple[float, float]]
        Mean and standard deviation of each input variable, in its own units.
    targets : Mapping[str, tuple[float, float]]
        The same of each variable of the result.
    lat, lon : np.ndarray
        The grid in degrees, float64.
    attributes : Mapping[str, Mapping[str, str]], optional
        ``units`` and ``long_name`` of the result's variables.
    """

    _inputs_mean: torch.Tensor
    _inputs_std: torch.Tensor
    _targets_mean: torch.Tensor
    _targets_std: torch.Tensor

    def __init__(
        self,
        network: torch.nn.Module | None,
        inputs: Mapping[str, tuple[float, float]],
        targets: Mapping[str, tuple[float, float]],
        lat: np.ndarray,
        lon: np.ndarray,
        attributes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.inputs, self.targets = dict(inputs), dict(targets)
        self._lat, self._lon = lat, lon
        self._attributes = {name: dict(own) for name, own in (attributes or {}).items()}
        for part, scales in (("inputs", inputs), ("targets", targets)):
            both = torch.tensor([*scales.values()], dtype=torch.float32).T[:, :, None, None]
            self.register_buffer(f"_{part}_mean", both[0], persistent=False)
            self.register_buffer(f"_{part}_std", both[1], persistent=False)

    def __str__(self) -> str:
        return "trained"

    def variable_attributes(self) -> dict[str, dict[str, str]]:
        """``units`` and ``long_name`` of the result's variables."""
        return self._attributes

    def input_coords(self) -> Coords:
        """Coordinates of its input: ``batch, variable, lat, lon``, on the grid of the training."""
        return OrderedDict(
            batch=np.empty(0), variable=np.array([*self.inputs]), lat=self._lat, lon=self._lon
        )

    @batch_coords()  # type: ignore[untyped-decorator]
    def output_coords(self, input_coords: Coords) -> Coords:
        """Coordinates of the result: those of the state, with its variables.

        Raises `ValueError` or `KeyError` if variables or grid differ from `input_coords()`.
        """
        wanted = self.input_coords()
        for index, dim in enumerate(wanted):
            if dim != "batch":
                handshake_dim(input_coords, dim, index)
                handshake_coords(input_coords, wanted, dim)
        output = input_coords.copy()
        output["variable"] = np.array([*self.targets])
        return output

    @batch_func()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def __call__(self, x: torch.Tensor, coords: Coords) -> State:
        """Compute the targets.

        Parameters
        ----------
        x : torch.Tensor
            The inputs in their own units, of shape (..., variable, lat, lon).
        coords : Coords
            Its coordinates.

        Returns
        -------
        x : torch.Tensor
            The targets in their own units, float32 of shape (..., variable, lat, lon).
        coords : Coords
            Its coordinates.
        """
        output = self.output_coords(coords)
        return self.unscaled(self.network(self.scaled_inputs(x.float()))), output

    def scaled_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise inputs [..., input, lat, lon]."""
        return (x - self._inputs_mean) / self._inputs_std

    def scaled_targets(self, y: torch.Tensor) -> torch.Tensor:
        """Normalise targets [..., target, lat, lon]."""
        return (y - self._targets_mean) / self._targets_std

    def unscaled(self, y: torch.Tensor) -> torch.Tensor:
        """Return normalised targets [..., target, lat, lon] in their own units."""
        return y * self._targets_std + self._targets_mean

    def save(self, folder: Path, **more: Any) -> None:
        """Write the package into a folder; the same network gives the same bytes.

        Parameters
        ----------
        folder : Path
            Where; it exists.
        **more : Any
            Further entries of its ``package.json``, such as the scores on held-out dates.
        """
        part = folder / f"part.{_NETWORK}"
        self.network.save(str(part))
        _remove_dates(part)
        part.replace(folder / _NETWORK)
        named = {
            "version": _VERSION,
            "inputs": self.inputs,
            "targets": self.targets,
            "attributes": self._attributes,
            "lat": self._lat.tolist(),
            "lon": self._lon.tolist(),
        }
        text = json.dumps({**named, **more}, indent=1)
        part = folder / f"part.{_PACKAGE}"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(folder / _PACKAGE)  # last: a package that has it is complete

    @classmethod
    def load_default_package(cls) -> Package:
        """Raise `NotImplementedError`: there is none."""
        raise NotImplementedError("a trained network has no default package")

    @classmethod
    def load_model(cls, package: Package) -> Self:
        """Load a package that ``recipe=train`` wrote, onto the CPU.

        Raises `FileNotFoundError` if a file is missing, `ConfigError` if a later version wrote it.
        """
        with delayed_compiler():
            from physicsnemo.core import Module

        made = cls.load_weightless(package)
        made.network = Module.from_checkpoint(package.resolve(_NETWORK)).eval()
        return made

    @classmethod
    def load_weightless(cls, package: Package) -> Self:
        """Load a package without its network: the coordinates, but no call.

        Raises as `load_model`.
        """
        with package.open(_PACKAGE) as file:
            named = json.load(file)
        if named["version"] != _VERSION:
            raise ConfigError(f"{_PACKAGE} has version {named['version']}; known is {_VERSION}")
        return cls(
            None,
            named["inputs"],
            named["targets"],
            np.array(named["lat"]),
            np.array(named["lon"]),
            named["attributes"],
        )


def _remove_dates(archive: Path) -> None:
    """Write a zip file again without the time at which its files were written."""
    whole = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(whole, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name, _DATE), old.read(name))
    archive.write_bytes(whole.getvalue())

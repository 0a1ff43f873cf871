"""The embedded default: a jet rolls up; workers decompose its wind and follow small errors."""

from __future__ import annotations

from omegaconf import DictConfig

from distinf import current_session
from recipes import diagnostic as stored
from recipes.shallow_water_figure import check_picture, draw
from recipes.shared.output_path import output_path, own_path

__all__ = ["check", "shallow_water"]


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before any rank is started or model loaded."""
    stored.check(cfg)
    check_picture(picture_path(cfg))


def shallow_water(cfg: DictConfig) -> None:
    """Run the recipe on the driver, then draw what is in the store.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    stored.diagnostic(cfg)
    picture = picture_path(cfg)
    variables = [f"{name}{cfg.prognostic.level}" for name in ("vo", "error_growth")]
    draw(output_path(cfg), picture, variables, current_session().farm.events)
    print(f"Picture: {picture}")


def picture_path(cfg: DictConfig) -> str:
    """Path of the picture: beside a store in a folder, else where the run's own files lie."""
    path = output_path(cfg).rstrip("/").removesuffix(".zarr") + ".png"
    return own_path(path.rpartition("/")[2]) if "://" in path else path

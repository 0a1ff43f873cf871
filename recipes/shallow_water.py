"""The embedded default: a jet on the sphere rolls up, its wind is decomposed on the workers."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes import diagnostic as stored
from recipes.place import output_path, own_path
from recipes.shallow_water_figure import check_picture, draw

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
    draw(output_path(cfg), picture, variable=f"vo{cfg.prognostic.level}")
    print(f"Picture: {picture}")


def picture_path(cfg: DictConfig) -> str:
    """Path of the picture: beside a store in a folder, else where the run's own files lie."""
    path = output_path(cfg).rstrip("/").removesuffix(".zarr") + ".png"
    return own_path(path.rpartition("/")[2]) if "://" in path else path

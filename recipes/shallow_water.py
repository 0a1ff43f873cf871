"""The embedded default: a jet on the sphere rolls up, its wind is decomposed on the workers."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from recipes.diagnostic import check, diagnostic
from recipes.shallow_water_figure import draw
from recipes.shared.output_path import output_path

__all__ = ["check", "shallow_water"]


def shallow_water(cfg: DictConfig) -> None:
    """Run the recipe on the driver, then draw what is in the store.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    diagnostic(cfg)
    path = output_path(cfg)
    picture = Path(path.rpartition("/")[2] if "://" in path else path).with_suffix(".png")
    draw(path, str(picture), variable=f"vo{cfg.prognostic.level}")
    print(f"Picture: {picture}")

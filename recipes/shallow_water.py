"""The embedded default: a jet on the sphere rolls up, its wind is decomposed on the workers."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from recipes.diagnostic import check, diagnostic
from recipes.shallow_water_figure import draw

__all__ = ["check", "shallow_water"]


def shallow_water(cfg: DictConfig) -> None:
    """Run the recipe on the driver, then draw what is in the store.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    diagnostic(cfg)
    picture = Path(cfg.parameters.output_path).with_suffix(".png")
    draw(cfg.parameters.output_path, str(picture), variable=f"vo{cfg.prognostic.level}")
    print(f"Picture: {picture}")

"""Train a network that stands in for a diagnostic, on all ranks, from stores of earlier runs."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import distinf  # torch is imported when a name that needs it is used first
from distinf import TrainingRun
from recipes.shared.checks import CHECKOUT
from recipes.shared.output_path import check_own, output_path, run_folder

__all__ = ["check", "read", "train"]


def read(cfg: DictConfig) -> TrainingRun:
    """Read a config; refuse keys that do not exist and values that cannot be."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain["parameters"]["output_path"] = output_path(cfg)
    return distinf.read_training(plain)


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before any rank is started or network made."""
    run = read(cfg)
    check_own(cfg)
    folders = {"the checkout of distinf": str(CHECKOUT)}
    if HydraConfig.initialized():
        folders["the run's own folder"] = run_folder()
    distinf.check_package(run, folders)
    distinf.check_pairs(run)


def train(cfg: DictConfig) -> None:
    """Train, write the package, and compare it with the mean of the training pairs.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    run = read(cfg)
    with distinf.hold_package(run) as folder:
        found = distinf.train_on_all_ranks(run)
    print(f"Trained on {found['pairs']} pairs in {found['seconds']:.1f} s")
    for name, score in found["scores"].items():
        mean = min(score["mean_at_each_point"], score["mean_of_all"])
        gain = 1 - score["network"] / mean if mean > 0 else 0.0
        print(
            f"{name} on {found['held_out']} held-out pairs: RMSE {score['network']:.4g}; the mean "
            f"of the training pairs at each point has {score['mean_at_each_point']:.4g}, their "
            f"mean over all points {score['mean_of_all']:.4g}. The network's error is "
            f"{abs(gain):.0%} {'less' if gain > 0 else 'more'} than the better of these"
        )
    print(f"Package: {folder}")

"""Start a recipe: config name -> recipe function, inside a session.

python main.py                                          # cfg/shallow_water.yaml, own ranks
torchrun --standalone --nnodes=1 --nproc-per-node=3 main.py --config-name=shallow_water
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Here, so that errors reach this file instead of being printed by Hydra, on every rank.
os.environ["HYDRA_FULL_ERROR"] = "1"
# TensorPipe warns of every connection that ends, also at a normal end.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import hydra
from omegaconf import DictConfig

from distinf import session

HOME = str(Path(__file__).resolve().parent)


@hydra.main(version_base="1.3", config_path="cfg", config_name="shallow_water")
def run_job(cfg: DictConfig) -> None:
    """Check the config of one job of Hydra's, open the session, run the recipe on the driver."""
    # A launcher of Hydra's may call this function in a process that does not know this folder.
    if HOME not in sys.path:
        sys.path.insert(0, HOME)
    from recipes.shared import cli

    with cli.explained():  # inside, too: Hydra would announce the error first, on every rank
        run = cli.read(cfg)
        if cli.made_batch_script(cfg):
            return
        with session(
            run.runtime,
            cli.number_of_ranks(cfg),
            preflight=lambda: cli.find_recipe(cfg).check(cfg),
            must_match=cli.settings(cfg),
            groups=run.groups,
        ) as rank:
            if rank == 0:
                getattr(cli.find_recipe(cfg), cfg.recipe)(cfg)


def main() -> None:
    """Run, and say what went wrong once."""
    from recipes.shared.cli import explained, prepare

    with explained():
        prepare()
        run_job()


if __name__ == "__main__":
    main()

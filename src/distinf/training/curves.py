"""The learning curve: as a picture, in the log, and for TensorBoard or MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from distinf.training.folder import CURVE

log = logging.getLogger("distinf")

_MEANS = {"mean_at_each_point": "--", "mean_of_all": ":"}


class Curves:
    """Losses and errors of the epochs; on other ranks than 0 it does nothing.

    Parameters
    ----------
    folder : Path
        Where the picture goes, and the files of TensorBoard or MLflow.
    kind : str
        ``"none"``, ``"tensorboard"`` or ``"mlflow"``.
    means : Mapping[str, Mapping[str, float]]
        Errors of the trivial predictors, by target.
    active : bool
        Whether this is rank 0.
    """

    def __init__(
        self, folder: Path, kind: str, means: Mapping[str, Mapping[str, float]], active: bool
    ) -> None:
        self._folder, self._means, self._active = folder, means, active
        self._resources = ExitStack()
        self._write: Callable[[Mapping[str, float], int], Any] = lambda values, epoch: None
        if active and kind == "tensorboard":
            self._use_tensorboard()
        elif active and kind == "mlflow":
            self._use_mlflow()

    def _use_tensorboard(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = self._resources.enter_context(
            SummaryWriter(str(self._folder / "tensorboard"))
        )
        self._write = lambda values, epoch: [
            writer.add_scalar(name, value, epoch) for name, value in values.items()
        ]

    def _use_mlflow(self) -> None:
        import os

        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{(self._folder / 'mlflow.db').absolute()}")
        self._resources.enter_context(mlflow.start_run(run_name=self._folder.name))
        self._write = lambda values, epoch: mlflow.log_metrics(dict(values), step=epoch)

    def add(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Show the newest epoch of these, and draw all of them."""
        if not self._active:
            return
        newest = history[-1]
        errors = {f"rmse/{name}": value for name, value in newest["rmse"].items()}
        self._write({"loss": newest["loss"], **errors}, newest["epoch"])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in newest["rmse"].items())
        log.info(
            "epoch %d: training loss %.4f, RMSE on held-out dates: %s",
            newest["epoch"],
            newest["loss"],
            shown,
        )
        try:
            self._draw(history)
        except Exception as error:  # a picture must not end a training
            log.warning("the learning curve could not be drawn: %s", error)

    def _draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * (1 + len(self._means)), 3.2), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(self._means))
        epochs = [own["epoch"] for own in history]
        first.semilogy(epochs, [own["loss"] for own in history])
        first.set(xlabel="epoch", title="training loss (normalised MSE)")
        for axis, (name, means) in zip(others, self._means.items(), strict=True):
            axis.plot(epochs, [own["rmse"][name] for own in history], label="network")
            for kind, style in _MEANS.items():
                axis.axhline(
                    means[kind], color="grey", linestyle=style, label=kind.replace("_", " ")
                )
            axis.set(xlabel="epoch", title=f"RMSE of {name} on held-out dates")
            axis.legend()
        figure.savefig(self._folder / CURVE, dpi=110)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

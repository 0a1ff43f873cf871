"""The training on one rank: statistics, epochs, checkpoints, validation, the package."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.backends import cudnn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from distinf.compiler import delayed_compiler
from distinf.errors import ConfigError
from distinf.loading import load_section
from distinf.models import Trained
from distinf.seeds import seed_all, seeded, task_seed
from distinf.training.curves import Curves
from distinf.training.folder import CHECKPOINTS, clear_package
from distinf.training.pairs import Pairs, share, split
from distinf.training.settings import TrainingRun

log = logging.getLogger("distinf")

_EPOCH = "epoch_"
# A lost rank ends the group at once; this is for one whose connection stays open.
_GROUP_TIMEOUT = timedelta(hours=1)


class Trainer:
    """One rank's part of a training; all ranks of the session make one and call `train`.

    Parameters
    ----------
    run : TrainingRun
        The training.
    """

    def __init__(self, run: TrainingRun) -> None:
        with delayed_compiler():
            from physicsnemo.distributed import DistributedManager

        manager = DistributedManager()
        self._run, self._seed = run, run.runtime.seed
        self._rank, self._size, self._device = manager.rank, manager.world_size, manager.device
        self._several = manager.distributed
        self._folder = Path(run.output_path)

    def train(self) -> dict[str, Any]:
        """Train to the end; rank 0 writes checkpoints, curves and the package, and returns scores.

        Raises `ConfigError` if network or data do not fit, or a checkpoint has other settings.
        """
        # A call runs in inference mode, in which nothing learns.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            cudnn.flags(enabled=True, deterministic=True),  # a resumed training has the same bytes
            seeded(task_seed(self._seed, "training"), self._device),
        ):
            return self._train()

    def _train(self) -> dict[str, Any]:
        run, started = self._run, time.monotonic()
        self._group = dist.new_group(timeout=_GROUP_TIMEOUT) if self._several else None
        gradients = self._group_of_gradients()
        pairs = Pairs(run)
        training, validation = split(pairs.times, run.held_out)
        if len(training) < self._size:
            raise ConfigError(f"there are {len(training)} pairs to train on for {self._size} ranks")
        own, counted = share(training, self._rank, self._size, self._seed % 2**64)
        held = validation[self._rank :: self._size]
        self._weight = _area_weight(pairs.lat)
        fresh = run.output.mode == "overwrite"
        checkpoint = None if fresh else self._newest_checkpoint()
        self._data = _digest(pairs)
        saved = self._read(checkpoint)
        self._warn_of_overlap(pairs, training, validation)
        both = [self._statistics(pairs, part) for part in (counted, held)]
        if checkpoint:
            self._check_values(checkpoint, saved["statistics"], both)
            both = saved["statistics"]  # they have the last bits of the first run
        statistics = both[0]
        model = self._model(pairs, statistics)
        network = model.network
        optimizer = torch.optim.Adam(network.parameters(), lr=run.training.learning_rate)
        epochs = run.training.epochs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        first = self._restore(checkpoint, network, optimizer, schedule) if checkpoint else 0
        history: list[dict[str, Any]] = list(saved["history"]) if saved else []
        means = self._errors_of_means(pairs, held, len(validation), statistics)
        if fresh and self._rank == 0:  # nothing that is wrong is found from here on
            clear_package(self._folder)
        with Curves(self._folder, run.training.log, means, self._rank == 0) as curves:
            for epoch in range(first + 1, epochs + 1):
                seed_all(task_seed(self._seed, f"epoch {epoch}"))
                loss = self._epoch(model, gradients, optimizer, Subset(pairs, own))
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"training.learning_rate={run.training.learning_rate}: the loss of epoch "
                        f"{epoch} is {loss}; choose a lower one"
                    )
                schedule.step()
                errors = self._errors(model, pairs, held, len(validation))
                history.append({"epoch": epoch, "loss": loss, "rmse": errors})
                curves.add(history)
                if epoch % run.training.checkpoint_every == 0 or epoch == epochs:
                    self._save(network, optimizer, schedule, epoch, both, history)
        scores = {
            name: {"network": history[-1]["rmse"][name], **means[name]} for name in run.data.target
        }
        if self._rank == 0:
            model.save(self._folder, scores=scores, history=history, settings=self._run.must_match)
        return {
            "pairs": len(training),
            "held_out": len(validation),
            "scores": scores,
            "history": history,
            "seconds": time.monotonic() - started,
        }

    def _warn_of_overlap(self, pairs: Pairs, training: list[int], validation: list[int]) -> None:
        """Say that the training has states of the times at which held-out forecasts are valid."""
        held = {pairs.all[index].valid for index in validation}
        common = sum(pairs.all[index].valid in held for index in training)
        if common and self._rank == 0:
            log.warning(
                "data.held_out: %d of %d training pairs are valid at times of held-out forecasts. "
                "Where these forecast the same weather, the errors on held-out dates are too small",
                common,
                len(training),
            )

    def _group_of_gradients(self) -> Any:
        """Return the process group of the gradients: NCCL where each rank has a GPU of its own."""
        if not self._several or self._device.type != "cuda":
            return self._group
        own: list[Any] = [None] * self._size
        uuid = str(torch.cuda.get_device_properties(self._device).uuid)
        dist.all_gather_object(own, uuid, group=self._group)
        if len(set(own)) < self._size:
            return self._group  # NCCL refuses two ranks on one GPU
        return dist.new_group(timeout=_GROUP_TIMEOUT, backend="nccl")

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, float64 on the host."""
        values = values.double().cpu()
        if self._several:
            dist.all_reduce(values, group=self._group)
        return values

    def _statistics(self, pairs: Pairs, own: Sequence[int]) -> dict[str, Any]:
        """Return mean and standard deviation of each variable, and the mean field of the targets.

        Over the sphere and the pairs of all ranks, of which each reads its own.
        """
        targets = len(self._run.data.target)
        channels = len(self._run.data.inputs) + targets
        shapes = (channels,), (channels,), (targets, len(pairs.lat), len(pairs.lon))
        sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        for index in own:
            x, y = (part.double() for part in pairs[index])
            both = torch.cat([x, y])
            sums[0] += self._mean(both)
            sums[1] += self._mean(both.square())
            sums[2] += y
        count = self._summed(torch.tensor(float(len(own))))
        mean, square, field = (self._summed(total) / count for total in sums)
        return {"mean": mean, "std": (square - mean.square()).clamp(min=0).sqrt(), "field": field}

    def _check_values(
        self, checkpoint: Path, saved: list[dict[str, Any]], found: list[dict[str, Any]]
    ) -> None:
        """Refuse stores of other values; on another number of ranks sums differ in last bits."""
        targets = len(self._run.data.target)
        for before, now in zip(saved, found, strict=True):
            size = (now["mean"].square() + now["std"].square()).sqrt()
            sizes = {"mean": size, "std": size, "field": size[-targets:, None, None]}
            if any(((now[k] - before[k]).abs() > 1e-6 * own).any() for k, own in sizes.items()):
                raise ConfigError(
                    f"data.path: the values are not those with which {checkpoint} was made; use "
                    "the same stores, or output.mode=overwrite"
                )

    def _mean(self, field: torch.Tensor) -> torch.Tensor:
        """Mean over the sphere of fields [..., lat, lon]."""
        return field.mean(dim=-1) @ self._weight.to(field)

    def _model(self, pairs: Pairs, statistics: dict[str, Any]) -> Trained:
        """Make the network, the same on all ranks, and try it on the grid."""
        data, settings = self._run.data, dict(self._run.network)
        channels = {"in_channels": len(data.inputs), "out_channels": len(data.target)}
        seed_all(task_seed(self._seed, "network"))
        with delayed_compiler():
            from physicsnemo.core import Module

            try:
                network = load_section({**channels, **settings, "_convert_": "all"}, "network")
            except (TypeError, ValueError, RuntimeError, ImportError) as error:
                raise ConfigError(f"network: it cannot be made: {error}") from error
        if not isinstance(network, Module):
            raise ConfigError(f"network._target_={settings['_target_']}: no module of PhysicsNeMo")
        found = _scales(statistics, [*data.inputs, *data.target])
        inputs, targets = ({n: found[n] for n in names} for names in (data.inputs, data.target))
        model = Trained(network, inputs, targets, pairs.lat, pairs.lon, pairs.attributes)
        model.to(self._device)
        grid = (len(pairs.lat), len(pairs.lon))
        wanted = (1, len(data.target), *grid)
        try:
            with torch.no_grad():
                made = model.network(torch.zeros(1, len(data.inputs), *grid, device=self._device))
        except Exception as error:
            raise ConfigError(f"network: it cannot be run on {grid} points: {error}") from error
        if made.shape != wanted:
            raise ConfigError(f"network: its result is {[*made.shape]}, not {[*wanted]}")
        return model

    def _epoch(self, model: Trained, group: Any, optimizer: Any, pairs: Subset[Any]) -> float:
        """Pass over the rank's pairs once; return the mean loss of all ranks."""
        network: torch.nn.Module = model.network
        if self._several:
            # Anew in each epoch: it arranges the gradients by the order of the first step, and the
            # order in which they are summed decides the last bits. So a resumed run has the same.
            on_gpu = [self._device] if self._device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=on_gpu, process_group=group)
        network.train()
        order = torch.Generator().manual_seed(torch.initial_seed())
        losses = []
        for x, y in DataLoader(pairs, self._run.training.batch, shuffle=True, generator=order):
            optimizer.zero_grad()
            made = network(model.scaled_inputs(x.to(self._device)))
            wrong = made - model.scaled_targets(y.to(self._device))
            loss: Any = self._mean(wrong.square()).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = self._summed(torch.stack(losses).mean()) / self._size
        return float(mean.item())

    def _errors(
        self, model: Trained, pairs: Pairs, own: Sequence[int], count: int
    ) -> dict[str, float]:
        """Root mean square error of each target over the held-out pairs, in its own units."""
        model.network.eval()
        with torch.no_grad():

            def predict(x: torch.Tensor) -> torch.Tensor:
                batch = model.scaled_inputs(x[None].to(self._device))
                return model.unscaled(model.network(batch))[0].double().cpu()

            return self._rmse(predict, pairs, own, count)

    def _errors_of_means(
        self, pairs: Pairs, own: Sequence[int], count: int, statistics: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Return the errors of the mean of the training pairs: at each point, and of all points."""
        targets = self._run.data.target
        whole = statistics["mean"][-len(targets) :, None, None]
        found = {
            "mean_at_each_point": self._rmse(lambda x: statistics["field"], pairs, own, count),
            "mean_of_all": self._rmse(lambda x: whole, pairs, own, count),
        }
        return {name: {kind: own[name] for kind, own in found.items()} for name in targets}

    def _rmse(self, predict: Any, pairs: Pairs, own: Sequence[int], count: int) -> dict[str, float]:
        total = torch.zeros(len(self._run.data.target), dtype=torch.float64)
        for index in own:
            x, y = pairs[index]
            total += self._mean((predict(x) - y.double()).square())
        found = (self._summed(total) / count).sqrt()
        return dict(zip(self._run.data.target, found.tolist(), strict=True))

    def _newest_checkpoint(self) -> Path | None:
        """Find the checkpoint from which rank 0 goes on, for all ranks."""
        found = sorted((self._folder / CHECKPOINTS).glob(f"{_EPOCH}*"))
        names: list[Any] = [found[-1].name if found else None]
        if self._several:
            dist.broadcast_object_list(names, src=0, group=self._group)
        return self._folder / CHECKPOINTS / names[0] if names[0] else None

    def _read(self, checkpoint: Path | None) -> dict[str, Any]:
        """Read what was saved with a checkpoint; refuse one of other settings."""
        if checkpoint is None:
            return {}
        from physicsnemo.utils import load_checkpoint

        saved: dict[str, Any] = {}
        with _quiet():
            load_checkpoint(checkpoint, metadata_dict=saved)
        if not saved:
            raise ConfigError(f"{checkpoint} is no checkpoint; remove it, or start anew")
        if saved.get("data") != self._data or len(list(checkpoint.iterdir())) < 2:
            raise ConfigError(
                f"data.path: {checkpoint} was made with other pairs, or is not whole; use the same "
                "stores, or output.mode=overwrite"
            )
        wanted = self._run.must_match
        for key in sorted({*wanted, *saved["settings"]}):
            before, now = saved["settings"].get(key), wanted.get(key)
            if before != now:
                raise ConfigError(
                    f"{key}={now}: {checkpoint} was made with {before}; use the same, or "
                    "output.mode=overwrite"
                )
        if saved["ranks"] != self._size and self._rank == 0:
            log.warning(
                "the training began on %d rank(s) and goes on with %d: its result will differ",
                saved["ranks"],
                self._size,
            )
        return saved

    def _restore(self, checkpoint: Path, network: Any, optimizer: Any, schedule: Any) -> int:
        """Load a checkpoint; return its epoch."""
        from physicsnemo.utils import load_checkpoint

        with _quiet():
            epoch = int(
                load_checkpoint(checkpoint, network, optimizer, schedule, device=self._device)
            )
        if self._rank == 0:
            log.info("epochs 1 to %d are done", epoch)
        return epoch

    def _save(
        self,
        network: Any,
        optimizer: Any,
        schedule: Any,
        epoch: int,
        statistics: list[dict[str, Any]],
        history: list[dict[str, Any]],
    ) -> None:
        """Write a checkpoint on rank 0, whole or not at all; two of them stay."""
        if self._rank != 0:
            return
        from physicsnemo.utils import save_checkpoint

        home = self._folder / CHECKPOINTS
        part = home / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        more = {
            "settings": self._run.must_match,
            "ranks": self._size,
            "data": self._data,
            "statistics": statistics,
            "history": history,
        }
        with _quiet():
            save_checkpoint(part, network, optimizer, schedule, epoch=epoch, metadata=more)
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.rename(home / f"{_EPOCH}{epoch:06d}")
        for older in sorted(home.glob(f"{_EPOCH}*"))[:-2]:
            shutil.rmtree(older)


def _digest(pairs: Pairs) -> str:
    """Tell the pairs of these stores and their grid from others."""
    text = "\n".join(f"{pair.store} {pair}" for pair in pairs.all)
    grid = pairs.lat.tobytes() + pairs.lon.tobytes()
    return hashlib.sha256(text.encode() + grid).hexdigest()


def _area_weight(lat: np.ndarray) -> torch.Tensor:
    """Share of each row of a grid in the sphere [lat], by the cosine of its latitude, float64."""
    weight = torch.from_numpy(np.cos(np.radians(lat))).clamp(min=0)
    return weight / weight.sum()


def _scales(statistics: dict[str, Any], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of each variable; 1 for one that is constant."""
    pairs = zip(names, statistics["mean"].tolist(), statistics["std"].tolist(), strict=True)
    return {name: (mean, std if std > 0 else 1.0) for name, mean, std in pairs}


@contextmanager
def _quiet() -> Iterator[None]:
    """Let PhysicsNeMo say nothing of each file."""
    logger = logging.getLogger("checkpoint")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before

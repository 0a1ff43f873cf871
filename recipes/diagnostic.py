"""Forecast on the driver, diagnose on the workers, gather into one store."""

from __future__ import annotations

import functools
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from distinf.errors import ConfigError, TaskError
from distinf.forecast import lead_times, rollout, step_coords
from distinf.inference import DistributedInference
from distinf.options import Output, parse_times
from distinf.output import ForecastStore, check_output
from distinf.progress import Progress, summarize, versions
from distinf.schema import vocabulary
from distinf.session import current_session
from recipes.checks import check_models
from recipes.models import make

log = logging.getLogger("distinf")


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before any rank is started or model loaded."""
    check_output(cfg.parameters.output_path, cfg.output.mode)
    check_models(cfg)


def diagnostic(cfg: DictConfig) -> None:
    """Run the recipe on the driver, inside a session.

    Parameters
    ----------
    cfg : DictConfig
        The config, checked.
    """
    session = current_session()
    farm, device = session.farm, session.device
    times, nsteps = parse_times(cfg.parameters.time), cfg.parameters.nsteps

    with ExitStack() as stack:
        diagnostics: dict[str, DistributedInference] = {}
        for name, settings in cfg.diagnostic.items():
            plain = OmegaConf.to_container(settings, resolve=True)
            infer = _construct(plain, str(name))
            diagnostics[str(name)] = stack.enter_context(infer)
        prognostic = make(cfg.prognostic, "prognostic").to(device)
        data = make(cfg.data, "data")

        state = step_coords(prognostic, times[0])
        outputs = {name: infer.output_coords(state) for name, infer in diagnostics.items()}
        store = stack.enter_context(
            ForecastStore(
                cfg.parameters.output_path,
                times,
                lead_times(prognostic, nsteps),
                outputs,
                attributes=_attributes(diagnostics, outputs),
                output=Output(**cfg.output),
                config=OmegaConf.to_container(cfg, resolve=True),
                versions=versions(),
                events=farm.events,
                pending=2 * len(farm.workers) + 2 * cfg.output.writers,
            )
        )
        done, total = store.counts
        log.info(
            "%d rank(s) by %s, carrier %s, %d of %d tasks to do",
            session.place.world_size,
            session.place.launcher,
            farm.transport.carrier,
            total - done,
            total,
        )
        with Progress(farm.events, total, done, farm.busy):
            for time in times:
                for x, coords in rollout(prognostic, data, time, nsteps, device, farm.events):
                    for name, infer in diagnostics.items():
                        if not store.is_complete(name, time, coords["lead_time"][-1]):
                            store.write(name, infer.submit(x, coords))
            store.close()

    events = list(farm.events)
    farm.events.save(Path(HydraConfig.get().runtime.output_dir) / "events.jsonl")
    wall = max(event.end for event in events) - min(event.start for event in events)
    print(summarize(events, wall, farm.transport.workers))
    print(f"Results: {cfg.parameters.output_path}")


def _construct(settings: Any, name: str) -> DistributedInference:
    """Load a diagnostic on all workers; what is wrong with its settings is told once, as such."""
    factory = functools.partial(make, settings, f"diagnostic.{name}")
    factory.__name__ = name  # type: ignore[attr-defined]  # what errors call it
    try:
        return DistributedInference(factory)
    except TaskError as error:
        if error.kind == ConfigError.__name__:
            raise ConfigError(error.remote_message) from None
        raise


def _attributes(
    diagnostics: dict[str, DistributedInference], outputs: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Units and long names: as the model tells them, else from Earth2Studio's vocabulary."""
    told: dict[str, dict[str, str]] = {}
    for name, infer in diagnostics.items():
        told.update({str(v): vocabulary(str(v)) for v in outputs[name]["variable"]})
        told.update(infer.variable_attributes())
    return told

"""How long a run takes with 1 to 10,000 workers, and how many are worth having.

Simulates distinf's dispatcher with a virtual clock. Costs are options, or measured ones from the
``events.jsonl`` that every run leaves.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import parser, save, table
from benchmarks.simulation import Costs, capacities, divided, floor, read_costs, simulate
from distinf.report.advice import fewest

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    add = made.add_argument
    add("--events", type=Path, help="events.jsonl of a run: its costs instead of the options'")
    add("--prognostic", type=float, default=1.0, help="seconds of a step")
    add("--diagnostic", type=float, default=30.0, help="seconds of a call")
    add("--bytes-in", type=float, default=83e6, help="of a call's input")
    add("--bytes-out", type=float, default=4.2e6, help="of its result")
    add("--link", type=float, default=1.2e9, help="bytes per second of the driver, each way")
    add("--latency", type=float, default=0.002, help="seconds a call is on its way")
    add("--submit", type=float, default=0.002, help="the driver's own seconds for a submit")
    add("--result", type=float, default=0.006, help="its own seconds for a result, written")
    add("--write-rate", type=float, default=200e6, help="bytes per second of a writing thread")
    add("--writers", type=int, default=2, help="writing threads")
    add("--states", type=int, default=41, help="states of one forecast")
    add("--per-state", type=int, default=1, help="diagnostic calls for each state")
    add("--forecasts", type=int, default=50, help="independent dates and members")
    add("--workers", type=int, nargs="+", default=WORKERS)
    add("--drivers", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--share", type=float, default=0.95, help="of the best wall time that is good enough")
    add("--plot", type=Path, help="draw wall time over workers into this file")
    add("--validate", action="store_true", help="compare with real runs of 1 to 16 workers")
    add("--runs", type=Path, help="with --validate: the --json of earlier runs, not new ones")
    return made


def costs_of(args: argparse.Namespace) -> Costs:
    return Costs(
        prognostic=args.prognostic,
        diagnostic=args.diagnostic,
        bytes_in=args.bytes_in,
        bytes_out=args.bytes_out,
        link=args.link,
        latency=args.latency,
        submit=args.submit,
        result=args.result,
        write=args.bytes_out / args.write_rate,
        writers=args.writers,
    )


def rows_over_workers(
    costs: Costs, states: int, per_state: int, forecasts: int, workers: Sequence[int], drivers: Any
) -> list[dict[str, Any]]:
    """Simulate each number of workers; the workers are divided over the drivers."""
    rows = []
    tasks = states * forecasts * per_state
    for count in workers:
        one = simulate(costs, states * forecasts, count, per_state)
        best = floor(costs, states * forecasts, count, per_state)
        row: dict[str, Any] = {
            "workers": count,
            "wall s": one.wall,
            "ideal s": best,
            "ideal / wall": best / one.wall,
            "workers busy %": 100 * tasks * costs.diagnostic / (count * one.wall),
            "prognostic waits %": 100 * one.waited / one.wall,
        }
        for k in drivers:
            if k > 1:
                outcome = divided(costs, states, count, forecasts, k, per_state)
                row[f"{k} drivers s"] = None if outcome is None else outcome.wall
        rows.append(row)
    return rows


def rows_of_limits(costs: Costs, per_state: int) -> list[dict[str, Any]]:
    """Say how many workers each part of the driver's side feeds."""
    return [
        {
            "part": part,
            "tasks per second": rate,
            "workers it keeps busy": rate * costs.diagnostic if rate < math.inf else math.inf,
        }
        for part, rate in capacities(costs, per_state).items()
    ]


def worth(costs: Costs, states: int, per_state: int, share: float, most: int) -> tuple[int, float]:
    """Fewest workers within ``share`` of the best wall time, and their wall time."""

    def seconds(workers: int) -> float:
        return simulate(costs, states, workers, per_state).wall

    count = fewest(seconds, seconds(most) / share, most)
    return count, seconds(count)


def rows_of_drivers(
    costs: Costs, args: argparse.Namespace, states: int, per_state: int
) -> list[dict[str, Any]]:
    """For each number of drivers: workers worth having, and what they bring."""
    rows = []
    for k in args.drivers:
        if k > args.forecasts:
            continue
        each = math.ceil(args.forecasts / k)
        most = max(1, max(args.workers) // k)
        count, wall = worth(costs, states * each, per_state, args.share, most)
        ranks = k * (count + 1)
        rows.append(
            {
                "drivers": k,
                "workers each": count,
                "ranks": ranks,
                "wall s": wall,
                "rank hours": ranks * wall / 3600,
            }
        )
    return rows


def validate(args: argparse.Namespace) -> dict[str, Any]:
    """Make real runs, as many as there are numbers of workers, and predict each from one other."""
    from benchmarks.validation import validate

    if args.runs:
        found = json.loads(args.runs.read_text(encoding="utf-8"))
        found["costs"] = {k: math.inf if v is None else v for k, v in found["costs"].items()}
    else:
        found = validate(None if args.workers == WORKERS else args.workers)
    print(table(found["runs"]))
    worst = max(abs(row["predicted / measured"] - 1) for row in found["runs"])
    print(f"Largest difference: {100 * worst:.1f} % (at most 10 % is wanted)")
    return {**found, "largest difference": worst}


def draw(path: Path, rows: list[dict[str, Any]], what: str, measured: Any = ()) -> None:
    """Draw wall time over workers, with the ideal."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    workers = [row["workers"] for row in rows]
    axes.plot(workers, [row["ideal s"] for row in rows], "k--", lw=1, label="ideal")
    axes.plot(workers, [row["wall s"] for row in rows], "o-", ms=3, label="simulated, 1 driver")
    for name in rows[0]:
        if name.endswith("drivers s"):
            pairs = [(row["workers"], row[name]) for row in rows if row[name] is not None]
            axes.plot(*zip(*pairs, strict=True), "o-", ms=3, label=name.removesuffix(" s"))
    if measured:
        axes.plot(*zip(*measured, strict=True), "kx", ms=8, label="measured")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="wall time (s)")
    axes.set_title(what, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}" if axis is axes.yaxis else NullFormatter())
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    args = options().parse_args()
    if args.validate:
        found = validate(args)
        if args.plot:
            measured = [(row["workers"], row["measured s"]) for row in found["runs"]]
            costs, states = Costs(**found["costs"]), found["states"]
            rows = rows_over_workers(costs, states, 1, 1, (1, 2, 4, 8, 16, 32, 64), [1])
            draw(args.plot, rows, title(costs, states, 1), measured)
        save(args.json, found)
        return
    costs, states, per_state = costs_of(args), args.states, args.per_state
    if args.events:
        costs, states, per_state = read_costs(args.events, costs)
        args.forecasts = 1
    print(title(costs, states, args.forecasts))
    rows = rows_over_workers(costs, states, per_state, args.forecasts, args.workers, args.drivers)
    limits = rows_of_limits(costs, per_state)
    drivers = rows_of_drivers(costs, args, states, per_state)
    print(f"\nOver workers; they are divided over the drivers\n\n{table(rows)}")
    print(f"\nWhere the driver saturates\n\n{table(limits)}")
    first = min(limits, key=lambda row: row["tasks per second"])
    print(f"\n{first['part']} saturates first: beyond {first['workers it keeps busy']:.0f} workers")
    print(f"\nFewest workers with {100 * args.share:g} % of the best time\n\n{table(drivers)}")
    if args.plot:
        draw(args.plot, rows, title(costs, states, args.forecasts))
    save(args.json, {"over workers": rows, "limits": limits, "worth having": drivers})


def title(costs: Costs, states: int, forecasts: int) -> str:
    return (
        f"{forecasts} forecast(s) of {states} states, prognostic {costs.prognostic:.3g} s, "
        f"diagnostic {costs.diagnostic:.3g} s, {costs.bytes_in / 1e6:.3g} MB in"
    )


if __name__ == "__main__":
    main()

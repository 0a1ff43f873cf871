"""What the values in a store come from: the config, the versions and the files that were read.

A store keeps this record from its creation on. A run that resumes it compares its own record: what
decides the values must be equal; what may change the last bits is logged in one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from distinf.typed_options import current_targets

# Settings that may change on resume, but for those in `_DECIDING`.
_FREE = (
    r"runtime\..*",
    r"report(\..*)?",
    r"output\.(?!verification).*",
    "slurm",
    "recipe",
    r"parameters\.output_path",
    r"diagnostic\.[^.]*\.(workers|nonfinite)",
    r"prognostic\.restartable",
)
_DECIDING = ("runtime.batch", "runtime.seed", "runtime.threads", "output.shards")
# Versions whose names begin so decide the values.
_SCHEME = "the scheme of "
# Values that mean the same as no value.
_SAME_AS_NONE = {
    r"diagnostic\.[^.]*\.compile": False,
    r"(diagnostic\.[^.]*|prognostic)\.ranks": 1,
}


@dataclass(frozen=True)
class Provenance:
    """What the values of a run come from: the resolved config, the versions of libraries, files.

    ``versions`` also has the schemes of models ("the scheme of ..."); ``files`` are those of
    `distinf.loading.read_files`.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)

    def created(self) -> dict[str, str]:
        """Attributes of a store that this run creates."""
        return {
            "history": f"{_now()} created by distinf",
            "config": json.dumps(self.config, default=str),
            "versions": json.dumps(dict(self.versions)),
            "files": json.dumps(self.files),
        }

    def problems(self, written: Mapping[str, Any]) -> list[str]:
        """Why a run cannot continue a store with these attributes; a line for each difference."""
        config = written.get("config")
        if not isinstance(config, str):
            return ["it was not made by distinf"]
        now = json.loads(json.dumps(self.config, default=str))
        return [
            *(
                f"{key}: the store has {was}, this run {mine}"
                for key, was, mine in differences(json.loads(config), now)
            ),
            *self._schemes(written),
            *(line for line, decides in self._files(written) if decides),
        ]

    def warnings(self, written: Mapping[str, Any]) -> list[str]:
        """List what has changed since a store was created and may change the values that follow."""
        was = json.loads(written.get("versions", "{}"))
        return [
            *(
                f"{name} is {mine}, it was {was[name]}"
                for name, mine in self.versions.items()
                if name in was and was[name] != mine
            ),
            *(line for line, decides in self._files(written) if not decides),
        ]

    def resumed(self, written: Mapping[str, Any]) -> dict[str, str]:
        """Attributes that change when this run continues a store with these attributes."""
        news: dict[str, str] = {}
        if changed := self.warnings(written):
            history = str(written.get("history", ""))
            entry = f"resumed by distinf: {'; '.join(changed)}"
            if not history.endswith(entry):
                news["history"] = f"{history}\n{_now()} {entry}"
        if _nsteps(json.loads(written["config"])) != _nsteps(self.config):
            news["config"] = json.dumps(self.config, default=str)
        return news

    def _schemes(self, written: Mapping[str, Any]) -> Iterator[str]:
        """Models that compute otherwise than those that made the store."""
        was = json.loads(written.get("versions", "{}"))
        for name, mine in self.versions.items():
            if name.startswith(_SCHEME) and was.get(name) != mine:
                then = was.get(name, "that of an earlier version of distinf")
                yield f"{name}: the store has {then}, this run {mine}"

    def _files(self, written: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Files that have changed, and whether this decides the values."""
        was = json.loads(written.get("files", "{}"))
        for key in sorted(was.keys() & self.files.keys()):
            before, here = was[key], self.files[key]
            # Few files are recorded one by one, many together as their folder.
            many = any("many" in record for record in (*before.values(), *here.values()))
            gone = sorted(before.keys() - here.keys())
            if gone and many:
                yield f"files in the folder of {key} have changed", False
            elif gone:
                yield f"{', '.join(gone)} ({key}) can no longer be found", False
            for name in sorted(before.keys() & here.keys()):
                yield from _file_changes(f"{name} ({key})", before[name], here[name])


def _file_changes(
    name: str, then: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    """Compare two records of a file, or of a folder of many; as `Provenance._files`."""
    changed = {key for key in (*then, *now) if then.get(key) != now.get(key)}
    what = "store" if "made" in then else "file"
    other = f"the {what} {name} is not the one that the store was made from"
    if "made" in changed and "made" in then:  # earlier versions did not record it
        yield f"{other}: that was created at {then['made']}", True
    elif "many" in {*then, *now}:
        if changed & {"many", "sample"}:
            yield f"files in the folder {name} have changed", False
        elif "newest" in changed and "newest" in then:  # earlier versions did not record it
            how = "with the same names and sizes"
            yield f"files in the folder {name} were written again, {how}", False
    elif "size" in changed:
        yield f"{other}: {then['size']} bytes then, {now['size']} now", True
    elif "sample" in changed:
        yield other, True
    elif "mtime" in changed:
        yield f"the file {name} was written again, with the same size and samples", False


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Compare the settings of a store's and of this run's config that decide the values.

    Targets that have moved are the same. Yields the key and both values, None where there is none.
    """
    return _differences(current_targets(was)[0], current_targets(now)[0])


def _differences(
    was: Mapping[str, Any], now: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*was, *now}):
        path = f"{where}{key}"
        if path not in _DECIDING and any(re.fullmatch(free, path) for free in _FREE):
            continue
        a, b = was.get(key), now.get(key)
        for same, value in _SAME_AS_NONE.items():
            if re.fullmatch(same, path):
                a, b = (None if v is value else v for v in (a, b))
        if path == "parameters.nsteps" and isinstance(a, int) and isinstance(b, int) and b > a:
            continue  # more steps change none of the first ones
        if isinstance(a or {}, dict) and isinstance(b or {}, dict) and (a or b):
            yield from _differences(a or {}, b or {}, f"{path}.")
        elif json.dumps(a, default=str) != json.dumps(b, default=str):
            yield path, was.get(key), now.get(key)


def _nsteps(config: Mapping[str, Any]) -> Any:
    return (config.get("parameters") or {}).get("nsteps")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

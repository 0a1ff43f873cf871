"""Whether what a run needs from the network can be had from here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distinf.errors import ConfigError
from distinf.loading.declared import find

__all__ = ["cached_folders", "check_reachable", "unfetched", "unreachable", "unread"]

# Where default packages come from.
_HOSTS = {"hf": "huggingface.co", "ngc": "api.ngc.nvidia.com"}
# Where data comes from, and its folder in Earth2Studio's cache.
_DATA = {
    "earth2studio.data.GFS": ("noaa-gfs-bdp-pds.s3.amazonaws.com", "gfs"),
    "earth2studio.data.IFS": ("ecmwf-forecasts.s3.amazonaws.com", "ifs"),
    "earth2studio.data.ARCO_ERA5": ("storage.googleapis.com", "arco_era5"),
    "earth2studio.data.CDS_ERA5": ("cds.climate.copernicus.eu", "cds_era5"),
}
# Their errors are no subclasses of ConnectionError.
_NETWORK = ("aiohttp", "botocore", "httpcore", "httpx", "obstore", "requests", "urllib3")


def check_reachable(given: Mapping[str, Any], where: str) -> None:
    """Refuse a default package or data that is neither in the cache nor to be had from here.

    Only where the host's name cannot be resolved; anything subtler shows when it is fetched.

    Parameters
    ----------
    given : Mapping[str, Any]
        A section of the config.
    where : str
        Its name, for errors.

    Raises
    ------
    ConfigError
        Names the package or the data source, and what to do.
    """
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy")):
        return  # names are resolved there
    target, kind = given.get("_target_"), given.get("kind")
    if target == "distinf.loading.load_model" and given.get("package") is None:
        url, folders = _default_package(given, where)
        host = _HOSTS.get(url.partition("://")[0])
        if host is not None and (why := _out_of_reach(host, folders, "MODEL")) is not None:
            name = given["model"].rpartition(".")[2]
            raise ConfigError(f"{where}: {unfetched(url, name, why)}")
    elif target == "distinf.loading.load_data" and kind in _DATA and "source" not in given:
        host, folder = _DATA[kind]
        if (why := _out_of_reach(host, [folder], "DATA")) is not None:
            raise ConfigError(unread(kind.rpartition(".")[2], why))


def cached_folders(config: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    """Folders of Earth2Studio's cache in which the model packages of a config lie.

    Parameters
    ----------
    config : Mapping[str, Any]
        The resolved config.

    Yields
    ------
    tuple[str, list[Path]]
        The key of the package, and its folders; they need not exist.
    """
    sections = {f"diagnostic.{name}": own for name, own in (config.get("diagnostic") or {}).items()}
    sections["prognostic"] = config.get("prognostic") or {}
    for where, given in sections.items():
        if not isinstance(given, Mapping):
            continue
        package = given.get("package")
        if given.get("_target_") != "distinf.loading.load_model":
            continue
        if package is None:
            yield f"{where}.package", _cache("MODEL", _default_package(given, where)[1])
        elif "://" in package:
            yield f"{where}.package", _cache("MODEL", [os.path.join("packages", one_word(package))])


def one_word(package: str) -> str:
    """Name of the folder in which a package with this URL is cached."""
    return "".join(c if c.isalnum() or c in "._-@" else "_" for c in package)


def _default_package(given: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """URL of a model's default package, and names of its folders in the cache."""
    declared = find(given["model"], f"{where}.model")
    texts = declared.strings("load_default_package") if declared is not None else []
    url = next((text for text in texts if "://" in text), "")
    return url, [text for text in texts if text and "://" not in text and "/" not in text]


def _cache(kind: str, folders: list[str]) -> list[Path]:
    home = os.path.join(os.path.expanduser("~"), ".cache", "earth2studio")
    home = os.environ.get("EARTH2STUDIO_CACHE", home)
    home = os.environ.get(f"EARTH2STUDIO_{kind}_CACHE", home)
    return [Path(home, folder) for folder in folders]


def _out_of_reach(host: str, folders: list[str], cache: str) -> str | None:
    """Why a host cannot be reached; None if it can, or one of the cache's folders holds files."""
    paths = _cache(cache, folders)
    if any(path.is_dir() and any(path.iterdir()) for path in paths):
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return None


def unfetched(package: str, name: str, why: str) -> str:
    """Say that a package is out of reach, and what to do."""
    return (
        f"package {package} of {name} could not be fetched ({why}). Run once where there is a "
        "network, so that it is cached, or name a local copy: package=/path/to/folder"
    )


def unread(name: str, why: str) -> str:
    """Say that a data source is out of reach, and what to do."""
    return (
        f"data: {name} cannot be reached ({why}). Run once where there is a network, so that it "
        "is cached, or name a local file: data=file data.path=/path"
    )


def unreachable(error: BaseException) -> str | None:
    """Tell why the network could not be used, if that is what an error is about.

    Parameters
    ----------
    error : BaseException
        What was raised; its causes are looked at, too.

    Returns
    -------
    str | None
        The reason in a line; None if the error is about something else.
    """
    for cause in _chain(error):
        library = type(cause).__module__.split(".")[0]
        if isinstance(cause, ConnectionError | TimeoutError) or library.startswith(_NETWORK):
            text = str(cause).split("\n")[0].strip() or type(cause).__name__
            return text if len(text) <= 300 else text[:300] + "..."
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

"""Models and data sources of Earth2Studio by name; one clear error if one cannot be loaded.

In a config, ``_target_: distinf.loading.load_model`` loads a model with its package, and
``_target_: distinf.loading.load_data`` makes a data source.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from distinf.errors import ConfigError
from distinf.loading.imports import import_first
from distinf.loading.preflight import cache_name, find, unfetched, unreachable
from distinf.typed_options import check_keys
from distinf.versions import install_command

# Key that names the class, and the method that takes the other settings.
_LOADERS = {"load_model": ("model", "load_model"), "load_data": ("kind", "__init__")}


def load_model(model: str, package: str | None = None, **settings: Any) -> Any:
    """Load a model with its package, onto the CPU.

    Parameters
    ----------
    model : str
        Its class, such as ``"earth2studio.models.px.FCN"``.
    package : str | None, optional
        A local folder or a URL, by default None: its default package.
    **settings : Any
        Further arguments of its ``load_model``.

    Returns
    -------
    Any
        The model.

    Raises
    ------
    ConfigError
        If the class, its extra or its package is missing or cannot be fetched, or there is no such
        setting.
    """
    return _from_package(model, package, settings)


def _from_package(
    model: str, package: str | None, settings: Mapping[str, Any], method: str = "load_model"
) -> Any:
    """Make a model of its package, by a method of its class."""
    _check_loader({"model": model, "package": package, **settings}, "load_model", "")
    found = _import(model)
    name = found.__name__
    if not hasattr(found, "load_model"):
        raise ConfigError(f"{name} needs no package: use _target_: {model}")
    root = package or f"default package of {name}"
    try:
        files = _open_package(found, package)
        root = files.root
        return getattr(found, method)(files, **settings)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"package {root} is not a package of {name}: {error}") from error
    except Exception as error:
        if (why := unreachable(error)) is None:
            raise
        raise ConfigError(unfetched(root, name, why)) from error


def load_data(kind: str, **settings: Any) -> Any:
    """Make a data source.

    Parameters
    ----------
    kind : str
        Its class, such as ``"earth2studio.data.GFS"``.
    **settings : Any
        Arguments of its constructor.

    Returns
    -------
    Any
        The data source.

    Raises
    ------
    ConfigError
        If the class or its extra is missing, it cannot be reached, or there is no such setting.
    """
    _check_loader({"kind": kind, **settings}, "load_data", "")
    found = _import(kind)
    try:
        return found(**settings)
    except Exception as error:
        if (why := unreachable(error)) is None:
            raise
        raise ConfigError(f"{found.__name__} cannot be reached ({why})") from error


def load_section(settings: Mapping[str, Any], where: str, **more: Any) -> Any:
    """Make the object of a section with ``_target_``.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The section.
    where : str
        Its name, such as ``"diagnostic.precip_afno"``.
    **more : Any
        Further arguments, such as ``group``.

    Returns
    -------
    Any
        The object; a model is on the CPU.

    Raises
    ------
    ConfigError
        If a setting is wrong; begins with the section.
    Exception
        What the target raised.
    """
    try:
        import_first(settings["_target_"])
        return instantiate(settings, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{where}: {cause}") from None
        if cause is not None:
            raise cause from None
        raise


def weight_free(settings: Mapping[str, Any]) -> bool:
    """Whether the object of a section has no weights."""
    return str(settings["_target_"]).startswith("distinf.models.")  # none of these has weights


def load_weightless(settings: Mapping[str, Any], where: str, imported: bool = True) -> Any:
    """Make a model that knows its coordinates without its weights; None if it cannot be made.

    ``imported`` says whether Earth2Studio's models may be imported for it.
    """
    target = settings["_target_"]
    model = settings.get("model", target)
    try:
        if weight_free(settings):
            return load_section(settings, where)
        if model.startswith("distinf.models."):
            own = {key: value for key, value in settings.items() if not key.startswith("_")}
            return load_section({**own, "_target_": f"{__name__}._without_weights"}, where)
        if not imported or not model.startswith("earth2studio.models."):
            return None
        import_first(model)
        found = get_object(model)
        if target == model:  # no package: it has no weights
            return None if hasattr(found, "load_model") else load_section(settings, where)
        bare = object.__new__(found)
        bare.output_coords(bare.input_coords())
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as error:
        if weight_free(settings):
            raise ConfigError(f"{where}: {error}") from None
        return None
    except Exception:  # its coordinates depend on its weights
        return None
    return bare


def _without_weights(model: str, package: str | None = None, **settings: Any) -> Any:
    """Make one of distinf's own models from what its package says beside its weights."""
    return _from_package(model, package, settings, "load_weightless")


def check_target(given: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` if a section's ``_target_`` does not exist or does not take its settings.

    Only targets of distinf, Earth2Studio and PhysicsNeMo are checked. Nothing is imported.
    """
    target = given.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(
            f"{where} has no _target_: choose one of its group, or set {where}._target_"
        )
    if not target.startswith(("distinf.", "earth2studio.", "physicsnemo.")):
        return
    if target.startswith("distinf.loading.load_"):
        _check_loader(given, target.removeprefix("distinf.loading."), where)
        return
    declared = find(target, f"{where}._target_")
    taken = declared.parameters() if declared is not None else None
    if taken is not None:
        check_keys([key for key in given if not key.startswith("_")], taken, where)


def check_takes_group(given: Mapping[str, Any], where: str, ranks: int) -> None:
    """Raise `ConfigError` if a model is known not to run on several ranks."""
    target = str(given["_target_"])
    if not target.startswith(("distinf.", "earth2studio.")):
        return  # it is asked when it is constructed
    declared = find(target, f"{where}._target_")
    if declared is None or "group" not in (declared.parameters() or ()):
        name = given.get("model", target).rpartition(".")[2]
        raise ConfigError(
            f"{where}.ranks={ranks}: {name} runs on one rank; only a model that takes a process "
            "group (group=) runs on several"
        )


def _check_loader(given: Mapping[str, Any], loader: str, where: str) -> None:
    """Check the class and the settings that ``load_model`` or ``load_data`` is given."""
    key, method = _LOADERS[loader]
    dotted = f"{where}.{key}" if where else key
    target = given.get(key)
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{dotted}={target}: name a class, such as earth2studio.models.px.FCN")
    declared = find(target, dotted)
    if declared is not None and (missing := declared.missing_extra()) is not None:
        raise ConfigError(_lacks(target.rpartition(".")[2], *missing, dotted))
    package = given.get("package")
    if isinstance(package, str) and "://" not in package:
        _local_folder(package, f"{where}." if where else "")
    taken = declared.parameters(method) if declared is not None else None
    if taken is not None:
        own = ["model", "package"] if loader == "load_model" else ["kind"]
        check_keys([k for k in given if not k.startswith("_")], {*own, *taken}, where)


def _import(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        import_first(target)
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{target} cannot be imported: {error}") from error
    _check_extra(found)
    return found


def _check_extra(found: Any) -> None:
    """Raise if Earth2Studio could not import an extra: its own error prints a page on each rank."""
    from earth2studio.utils.imports import OptionalDependencyFailure

    source = getattr(sys.modules.get(found.__module__), "__file__", None)
    failure = OptionalDependencyFailure.failures.get(source or "")
    if failure is not None and failure.import_exception is not None:
        missing = getattr(failure.import_exception, "name", None) or failure.import_exception
        raise ConfigError(_lacks(found.__name__, failure.group_name, str(missing)))


def _lacks(name: str, extra: str, module: str, where: str = "") -> str:
    prefix = f"{where}: " if where else ""
    return (
        f"{prefix}{name} needs Earth2Studio's extra {extra!r}, of which {module} is not "
        "installed: " + install_command(f"earth2studio[{extra}]")
    )


def _local_folder(package: str, prefix: str = "") -> Path:
    folder = Path(os.path.expanduser(package)).absolute()
    if not folder.is_dir():
        raise ConfigError(f"{prefix}package={package}: the folder {folder} does not exist")
    return folder


def _open_package(found: Any, package: str | None) -> Any:
    from earth2studio.models.auto import Package

    from distinf.loading.packages import NodePackage

    if package is None:
        try:
            return NodePackage(found.load_default_package())
        except NotImplementedError:
            raise ConfigError(
                f"{found.__name__} has no default package: name one, package=/path/to/folder"
            ) from None
    if "://" not in package:
        return NodePackage(Package(str(_local_folder(package))))
    # Files keep their names in the cache, so each URL needs its own folder there.
    folder = Path(Package.default_cache("packages")) / cache_name(package)
    options = {"cache_storage": str(folder), "same_names": True}
    return NodePackage(Package(package, cache_options=options))

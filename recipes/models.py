"""Make what a section of the config names, with errors that name the section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from distinf.errors import ConfigError
from distinf.loading import import_first


def make(settings: Mapping[str, Any], where: str) -> Any:
    """Make the object of a section with ``_target_``.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The section.
    where : str
        Its name, such as ``"diagnostic.precip_afno"``.

    Returns
    -------
    Any
        The object.

    Raises
    ------
    ConfigError
        If a setting cannot work; begins with the section.
    Exception
        What the target raised.
    """
    try:
        import_first(settings["_target_"])
        return instantiate(settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{where}: {cause}") from None
        if cause is not None:
            raise cause from None
        raise


def take_restartable(settings: dict[str, Any]) -> bool | None:
    """Take ``restartable`` out of the prognostic's settings: it is for us, not for the model.

    Raises
    ------
    ConfigError
        If it is neither true, false nor null.
    """
    stated = settings.pop("restartable", None)
    if stated not in (True, False, None):
        raise ConfigError(f"prognostic.restartable={stated}: choose true, false or null")
    return stated


def is_weight_free(settings: Mapping[str, Any]) -> bool:
    """Whether the object of a section costs nothing to make."""
    target = settings["_target_"]
    return target.startswith("distinf.") and getattr(get_object(target), "weight_free", False)


def weightless(settings: Mapping[str, Any], where: str, imported: bool = True) -> Any:
    """Make a model that tells its coordinates, without its weights.

    Parameters
    ----------
    settings : Mapping[str, Any]
        The section.
    where : str
        Its name.
    imported : bool, optional
        Whether Earth2Studio's models may be imported for it, by default True.

    Returns
    -------
    Any
        None if only loading it would tell.
    """
    target = settings["_target_"]
    try:
        if is_weight_free(settings):
            return make(settings, where)
        model = settings.get("model", target)
        if not imported or not model.startswith("earth2studio.models."):
            return None
        import_first(model)
        found = get_object(model)
        if target == model:  # no package: it has no weights
            return None if hasattr(found, "load_model") else make(settings, where)
        bare = object.__new__(found)
        bare.output_coords(bare.input_coords())
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as error:
        if is_weight_free(settings):
            raise ConfigError(f"{where}: {error}") from None
        return None
    except Exception:  # it learns its coordinates from its weights
        return None
    return bare

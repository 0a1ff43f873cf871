"""Make what a section of the config names, with errors that name the section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from distinf.errors import ConfigError


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
        return instantiate(settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{where}: {cause}") from None
        if cause is not None:
            raise cause from None
        raise

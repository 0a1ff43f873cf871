"""Models without weights, and data sources for them."""

from distinf.models.galewsky import GalewskyJet
from distinf.models.netcdf_winds import NetCDFWinds
from distinf.models.shallow_water import ShallowWater
from distinf.models.wind_decomposition import WindDecomposition

__all__ = ["GalewskyJet", "NetCDFWinds", "ShallowWater", "WindDecomposition"]

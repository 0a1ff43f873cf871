from .fields import FileSource as FileSource
from .fields import RandomFields as RandomFields
from .fields import persistence as persistence
from .fields import replay as replay
from .galewsky import GalewskyJet as GalewskyJet
from .netcdf_winds import NetCDFWinds as NetCDFWinds
from .shallow_water import ShallowWater as ShallowWater
from .wind_decomposition import WindDecomposition as WindDecomposition

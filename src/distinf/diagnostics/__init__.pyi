from .chain import Chain as Chain
from .chain import Kept as Kept
from .chain import Link as Link
from .placement import assign as assign
from .placement import chains as chains
from .placement import split as split

from .archive_chain import ArchiveChain as ArchiveChain
from .chain import Chain as Chain
from .chain import Link as Link
from .chain import StoredSubset as StoredSubset
from .placement import Placement as Placement
from .placement import assign as assign
from .placement import chains as chains
from .placement import split as split

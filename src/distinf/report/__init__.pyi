from .advice import Work as Work
from .advice import best_drivers as best_drivers
from .advice import shared as shared
from .events import Event as Event
from .events import Events as Events
from .progress import Progress as Progress
from .progress import summarize as summarize

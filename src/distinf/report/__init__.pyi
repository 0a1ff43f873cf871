from .advice import best_drivers as best_drivers
from .advice import why_so_many as why_so_many
from .events import Event as Event
from .events import Events as Events
from .pace import Pace as Pace
from .progress import Progress as Progress
from .progress import summarize as summarize
from .trace import write_trace as write_trace

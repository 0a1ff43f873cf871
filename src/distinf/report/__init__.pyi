from .events import Event as Event
from .events import Events as Events
from .progress import Progress as Progress
from .progress import summarize as summarize

from .progress import Event as Event
from .progress import Events as Events
from .progress import Progress as Progress
from .progress import summarize as summarize

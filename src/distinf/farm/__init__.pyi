from .dispatcher import Dispatcher as Dispatcher
from .driver import DriverWorks as DriverWorks
from .farm import Farm as Farm
from .heartbeat import Pulse as Pulse

from .dispatcher import Dispatcher as Dispatcher
from .farm import Farm as Farm
from .heartbeat import Pulse as Pulse

from .page import Record as Record
from .page import read_record as read_record
from .page import write_report as write_report
from .timeline import read_timeline as read_timeline

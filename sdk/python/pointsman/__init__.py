"""Write Pointsman policies in Python: a class with a method for each slot, and the columns it wants."""

from . import host
from .config import number, only
from .random import Random
from .view import Event, Frame, Hints, HintsView, ObserveView, RouteView, ScheduleView, Table

__all__ = [
    "Event",
    "Frame",
    "Hints",
    "HintsView",
    "ObserveView",
    "Random",
    "RouteView",
    "ScheduleView",
    "Table",
    "host",
    "number",
    "only",
]

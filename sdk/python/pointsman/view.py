"""What a policy is shown: the clock, a seed, and tables of the columns that it declared.

Invariant: a table hands out declared columns only; a name that was not declared is an error.
"""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Columns:
    """Columns that a policy declares of one table."""

    numbers: tuple = ()
    ids: tuple = ()

    @classmethod
    def of(cls, declared):
        """From what an author writes: a list of numbers, or a dict with `numbers` and `ids`."""
        if isinstance(declared, dict):
            return cls(tuple(declared.get("numbers", ())), tuple(declared.get("ids", ())))
        return cls(tuple(declared), ())


class Table:
    """Rows times declared columns, each column one contiguous run of the flat lists."""

    __slots__ = ("rows", "_columns", "_numbers", "_ids", "_numbers_at", "_ids_at")

    def __init__(self, columns, rows, numbers, ids, numbers_at=0, ids_at=0):
        self.rows = rows
        self._columns = columns
        self._numbers = numbers
        self._ids = ids
        self._numbers_at = numbers_at
        self._ids_at = ids_at

    def column(self, name):
        """A declared column of numbers, a cell a row. Look it up once, before the loop over rows."""
        at = self._numbers_at + _position(self._columns.numbers, name) * self.rows
        return self._numbers[at : at + self.rows]

    def ids(self, name):
        """A declared column of ids, a cell a row; 0 means none."""
        at = self._ids_at + _position(self._columns.ids, name) * self.rows
        return self._ids[at : at + self.rows]

    def value(self, name):
        """A declared number of a table that has one row."""
        return self._numbers[self._numbers_at + _position(self._columns.numbers, name)]

    def id(self, name):
        """A declared id of a table that has one row."""
        return self._ids[self._ids_at + _position(self._columns.ids, name)]


def _position(declared, name):
    try:
        return declared.index(name)
    except ValueError:
        known = ", ".join(declared) or "none"
        raise KeyError(f"column `{name}` was not declared; declared are {known}") from None


def split(shapes, numbers, ids):
    """Splits the flat lists of a call into tables, in the order of `shapes`: columns and rows of each."""
    numbers_at = ids_at = 0
    tables = []
    for columns, rows in shapes:
        tables.append(Table(columns, rows, numbers, ids, numbers_at, ids_at))
        numbers_at += len(columns.numbers) * rows
        ids_at += len(columns.ids) * rows
    return tables


@dataclass(frozen=True)
class Frame:
    """The clock and the randomness of one decision."""

    now_ms: int = 1_700_000_000_000
    seed: int = 1


@dataclass(frozen=True)
class RouteView:
    """One request and the workers that could serve it."""

    frame: Frame
    request: Table
    candidates: Table


@dataclass(frozen=True)
class ScheduleView:
    """A worker's sequences before a step."""

    frame: Frame
    budget: Table
    waiting: Table
    running: Table


@dataclass(frozen=True)
class ObserveView:
    """What became of requests: a batch, which may be empty."""

    frame: Frame
    outcomes: Table


@dataclass
class Hints:
    """What a request's caller wishes. `None` where nothing was said. An attribute is a bool, a number or a text."""

    session: str | None = None
    parent: str | None = None
    class_: str | None = None
    priority: float | None = None
    strict_tier: int | None = None
    deadline_ms: int | None = None
    expected_output_tokens: int | None = None
    speculative_prefill: bool | None = None
    session_final: bool | None = None
    attributes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class HintsView:
    """What a caller said about a request, raw."""

    frame: Frame
    protocol: str
    headers: list
    extensions: list
    prompt_tokens: int
    output_tokens_max: int | None

    def header(self, name):
        """Value of a header that is there and not blank, or None. Names are in lower case."""
        return next((value.strip() for key, value in self.headers if key == name), "") or None

    def extension(self, name):
        """An extension object of the body, parsed; None if it is not there or no JSON."""
        text = next((value for key, value in self.extensions if key == name), None)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return None


class Event:
    """Values of the column `event` of an outcome."""

    FIRST_TOKEN = 0
    FINISHED = 1
    FAILED = 2

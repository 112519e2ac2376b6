"""For tests of policies: cases with named columns, and the laws of each slot.

Invariant: a case shows a policy exactly the columns that it declared, laid out as in a call of the contract.
"""

import json
import math
import struct
from copy import deepcopy

from .host import take_said
from .random import Random
from .slots import SLOTS, declared_by
from .view import Frame, Hints

__all__ = ["Subject", "laws", "take_said"]

# Cases that a law is checked on. Chosen: well under a second.
_CASES = 300


class Subject:
    """A policy under test, asked as a host would ask it. An exception here refuses the settings."""

    def __init__(self, policy_class, config=None):
        self.policy = policy_class(json.loads(json.dumps(config or {})))
        methods = {slot: it.method for slot, it in SLOTS.items()}
        self._slots = {
            slot: declared_by(policy_class, slot) for slot, method in methods.items() if hasattr(policy_class, method)
        }

    def declared(self, slot):
        """The columns that the policy declares, by table."""
        return self._slots[slot].declared

    def filter(self, **view):
        """Asks a filter. `candidates` has a list of cells for each column that matters; the others are 0."""
        return self._route("filter", **view)

    def score(self, **view):
        """Asks a scorer."""
        return self._route("score", **view)

    def pick(self, scores=None, **view):
        """Asks a picker; without `scores` they are 0."""
        return self._route("pick", pick_scores=scores or [], **view)

    def order(self, waiting=None, running=None, budget=None, rows=None, frame=None):
        """Asks a scheduler. `rows` says how many wait and run where no column does."""
        columns = self.declared("schedule")
        waiting, running = waiting or {}, running or {}
        counts = rows or (_rows(waiting), _rows(running))
        sequence = columns["sequence"]
        tables = [(columns["budget"], _one(budget), 1), (sequence, waiting, counts[0]), (sequence, running, counts[1])]
        return self._ask("schedule", frame, *counts, *_flat(tables))

    def observe(self, outcomes=None, rows=None, frame=None):
        """Tells an observer."""
        outcomes = outcomes or {}
        count = _rows(outcomes) if rows is None else rows
        self._ask("observe", frame, count, *_flat([(self.declared("observe")["outcome"], outcomes, count)]))

    def interpret(self, headers=None, extensions=None, so_far=None, frame=None, protocol="openai-chat", **tokens):
        """Asks an interpreter of hints. An extension may be any JSON, or its text."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (extensions or {}).items()}
        said = (list((headers or {}).items()), list(texts.items()))
        counts = (tokens.get("prompt_tokens", 0), tokens.get("output_tokens_max"))
        return self._ask("hints", frame, protocol, *said, *counts, deepcopy(so_far) or Hints())

    def _route(self, slot, candidates=None, request=None, rows=None, frame=None, pick_scores=None):
        columns, candidates = self.declared(slot), candidates or {}
        count = rows or _rows(candidates) or len(pick_scores or ())
        tables = [(columns["request"], _one(request), 1), (columns["candidate"], candidates, count)]
        scores = () if pick_scores is None else ([_f32(score) for score in pick_scores] or [0.0] * count,)
        return self._ask(slot, frame, count, *_flat(tables), *scores)

    def _ask(self, slot, frame, *call):
        return self._slots[slot].call(self.policy, frame or Frame(), *call)


def _f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def _one(row):
    return {name: [cell] for name, cell in (row or {}).items()}


def _rows(cells):
    return len(next(iter(cells.values()), ()))


def _flat(tables):
    numbers, ids = [], []
    for columns, cells, rows in tables:
        for name, values in cells.items():
            known = (*columns.numbers, *columns.ids)
            assert name in known, f"the policy does not declare `{name}`; it declares {', '.join(known) or 'nothing'}"
            assert len(values) == rows, f"`{name}` needs a cell a row: {rows}, not {len(values)}"
        for name in columns.numbers:
            numbers += [_f32(cell) for cell in cells.get(name, [0.0] * rows)]
        for name in columns.ids:
            ids += cells.get(name, [0] * rows)
    return numbers, ids


class laws:
    """The law of each slot, checked over seeded cases; a failure names its seed.

    Two instances are asked the same: a policy is a function of its settings, its past and the view, so they must agree.
    """

    @staticmethod
    def filter(policy_class, config=None):
        def check(keep, rows):
            assert len(keep) == rows, "one flag a candidate"
            assert any(keep), "a filter keeps at least one candidate"

        _twice(policy_class, config, "filter", _route_case, check)

    @staticmethod
    def score(policy_class, config=None):
        def check(scores, rows):
            assert len(scores) == rows, "one score a candidate"
            assert all(0 <= score <= 1 and math.isfinite(score) for score in scores), f"not all in [0, 1]: {scores}"

        _twice(policy_class, config, "score", _route_case, check)

    @staticmethod
    def pick(policy_class, config=None):
        def case(columns, random):
            view, rows = _route_case(columns, random)
            return {**view, "scores": [random.below(5) / 4 for _ in range(rows)]}, rows

        def check(row, rows):
            assert 0 <= row < rows, f"row {row} is not a candidate"

        _twice(policy_class, config, "pick", case, check)

    @staticmethod
    def schedule(policy_class, config=None):
        def case(columns, random):
            rows = (random.below(41), random.below(17))
            waiting, running = (_cells(columns["sequence"], count, random) for count in rows)
            return {"waiting": waiting, "running": running, "rows": rows}, rows[0]

        def check(order, waiting):
            assert sorted(order) == list(range(waiting)), f"not a permutation of the waiting sequences: {order}"

        _twice(policy_class, config, "schedule", case, check)

    @staticmethod
    def observe(policy_class, config=None):
        subject = Subject(policy_class, config)
        subject.observe(rows=0)
        for seed in range(_CASES):
            random = Random(seed)
            rows = random.below(9)
            subject.observe(_cells(subject.declared("observe")["outcome"], rows, random), rows)

    @staticmethod
    def hints(policy_class, config=None):
        one, other = Subject(policy_class, config), Subject(policy_class, config)
        assert one.interpret() in (None, Hints()), "out of silence came a hint"
        for text in ("", "{", "null", "[]", '"text"', '{"agent_hints": 7}', '{"session_control": []}'):
            junk = {"headers": {"x-session-id": text}, "extensions": {"nvext": text, "metadata": text}}
            assert one.interpret(**junk) == other.interpret(**junk), f"`{text}`: two instances disagree"


def _route_case(columns, random):
    rows = 1 + random.below(40)
    request = {name: cells[0] for name, cells in _cells(columns["request"], 1, random).items()}
    return {"request": request, "candidates": _cells(columns["candidate"], rows, random), "rows": rows}, rows


def _twice(policy_class, config, slot, draw, check):
    one, other = Subject(policy_class, config), Subject(policy_class, config)
    ask = SLOTS[slot].method
    for seed in range(_CASES):
        view, rows = draw(one.declared(slot), Random(seed))
        frame = Frame(seed=seed)
        try:
            answer = getattr(one, ask)(frame=frame, **view)
            assert getattr(other, ask)(frame=frame, **view) == answer, "two instances disagree"
            if answer is not None:
                check(answer, rows)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def _cells(columns, rows, random):
    """Cells of the magnitudes that a host shows, often equal ones; ids are few."""
    cells = {}
    for name in columns.numbers:
        end = 1 if name in ("kv_used", "health") else (8 if random.below(2) else 40_000)
        same = random.unit() if random.below(4) == 0 else None
        units = [random.unit() if same is None else same for _ in range(rows)]
        cells[name] = [float(int(unit * end)) if end > 1 else unit for unit in units]
    for name in columns.ids:
        distinct = name in ("worker", "sequence")
        cells[name] = [row + 1 if distinct else random.below(6) for row in range(rows)]
    return cells

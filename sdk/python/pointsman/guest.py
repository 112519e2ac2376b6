"""Makes a component's classes of a policy class. Used by the build's entry module alone.

Invariant: a call before `configure` abstains; an exception is told to the host before it ends the call.
"""

import json
import traceback

from . import host
from .slots import SLOTS, declared_by
from .view import Hints


class _Sink:
    def __init__(self, log, metrics):
        self._log = log
        self._metrics = metrics

    def log(self, level, message):
        self._log.log(getattr(self._log.Level, level.upper()), message)

    def counter_add(self, name, value):
        self._metrics.counter_add(name, value)

    def gauge_set(self, name, value):
        self._metrics.gauge_set(name, value)


def connect(log, metrics):
    """Speaks to the host through its imports."""
    host.connect(_Sink(log, metrics))


class Component:
    """A policy class, its one instance, and the classes that export both."""

    def __init__(self, policy_class, name, version, slots, err, exports):
        self.policy = None
        self._class = policy_class
        self._about = (name, version)
        self._slots = {slot: declared_by(policy_class, slot) for slot in slots}
        self._err = err
        self._exports = exports

    def describe_class(self, base):
        component, contract = self, self._exports.describe

        class Describe(base):
            def describe(self):
                inputs = [
                    contract.Input(slot, table, list(columns.numbers), list(columns.ids))
                    for slot, it in component._slots.items()
                    for table, columns in it.declared.items()
                ]
                wishes = list(getattr(component._class, "wishes", {}).items())
                return contract.Description(*component._about, list(component._slots), inputs, wishes)

            def configure(self, json_):
                try:
                    component.policy = component._class(json.loads(json_))
                except Exception as error:
                    raise component._err(str(error)) from error

        return Describe

    def slot_class(self, slot, base):
        component, it = self, self._slots[slot]
        # Hints cross as the contract's record; policies see the SDK's.
        before, after = _hints(self._exports.hints) if slot == "hints" else (lambda call: call, lambda it: it)

        def call(_, *view):
            if component.policy is None:
                return None
            try:
                return after(it.call(component.policy, *before(view)))
            except Exception:
                host.log("error", traceback.format_exc())
                raise

        return type(slot.capitalize(), (base,), {SLOTS[slot].method: call})


# In the order of the contract's record.
_FIELDS = [name for name in Hints.__dataclass_fields__ if name != "attributes"]


def _hints(contract):
    values = {bool: contract.Value_Flag, float: contract.Value_Number, int: contract.Value_Number, str: contract.Value_Text}

    def before(view):
        *rest, so_far = view
        said = {name: value.value for name, value in so_far.attributes}
        own = [getattr(so_far, name) for name in _FIELDS]
        return (*rest, Hints(*own, said))

    def after(hints):
        if hints is None:
            return None
        attributes = [
            (name, values[type(it)](float(it) if type(it) is int else it)) for name, it in hints.attributes.items()
        ]
        return contract.HintSet(*(getattr(hints, name) for name in _FIELDS), attributes)

    return before, after


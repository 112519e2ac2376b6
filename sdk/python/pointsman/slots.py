"""The slots: which tables each is shown, and how a call of the contract becomes a call of the policy.

A slot that the contract gains gets a class here, and nothing else changes.
"""

from .view import Columns, HintsView, ObserveView, RouteView, ScheduleView, split


class _Slot:
    tables = ()

    def __init__(self, declared):
        self.declared = declared


class _Route(_Slot):
    tables = ("request", "candidate")

    def view(self, frame, rows, numbers, ids):
        shapes = ((self.declared["request"], 1), (self.declared["candidate"], rows))
        return RouteView(frame, *split(shapes, numbers, ids))


class FilterSlot(_Route):
    method = "filter"

    def call(self, policy, *call):
        return policy.filter(self.view(*call))


class ScoreSlot(_Route):
    method = "score"

    def call(self, policy, *call):
        return policy.score(self.view(*call))


class PickSlot(_Route):
    method = "pick"

    def call(self, policy, frame, rows, numbers, ids, scores):
        return policy.pick(self.view(frame, rows, numbers, ids), scores)


class ScheduleSlot(_Slot):
    tables = ("budget", "sequence")
    method = "order"

    def call(self, policy, frame, waiting, running, numbers, ids):
        sequence = self.declared["sequence"]
        shapes = ((self.declared["budget"], 1), (sequence, waiting), (sequence, running))
        return policy.order(ScheduleView(frame, *split(shapes, numbers, ids)))


class ObserveSlot(_Slot):
    tables = ("outcome",)
    method = "observe"

    def call(self, policy, frame, rows, numbers, ids):
        (outcomes,) = split(((self.declared["outcome"], rows),), numbers, ids)
        policy.observe(ObserveView(frame, outcomes))


class HintsSlot(_Slot):
    method = "interpret"

    def call(self, policy, frame, protocol, headers, extensions, prompt_tokens, output_tokens_max, so_far):
        view = HintsView(frame, protocol, headers, extensions, prompt_tokens, output_tokens_max)
        return policy.interpret(view, so_far)


SLOTS = {
    "hints": HintsSlot,
    "filter": FilterSlot,
    "score": ScoreSlot,
    "pick": PickSlot,
    "schedule": ScheduleSlot,
    "observe": ObserveSlot,
}


def declared_by(policy_class, slot):
    """The slot with the columns that a policy declares for each of its tables."""
    tables = SLOTS[slot].tables
    declared = getattr(policy_class, "columns", {}).get(slot, {})
    for table in declared:
        if table not in tables:
            known = ", ".join(tables) or "none"
            raise ValueError(f"slot `{slot}` has no table `{table}`; it has {known}")
    return SLOTS[slot]({table: Columns.of(declared.get(table, ())) for table in tables})

"""Chance that can be replayed. Python's own `random` starts from a seed that was frozen into the component."""

_MASK = (1 << 64) - 1


class Random:
    """A stream of numbers that follows from its seed: `view.frame.seed` in a policy.

    Source: splitmix64, the generator of the Rust SDK: equal seeds give equal streams in both.
    """

    def __init__(self, seed):
        self._state = seed & _MASK

    def next(self):
        """The next 64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, end):
        """A whole number below `end`, which must not be 0."""
        return (self.next() * end) >> 64

    def unit(self):
        """A number in [0, 1)."""
        return (self.next() >> 40) / (1 << 24)

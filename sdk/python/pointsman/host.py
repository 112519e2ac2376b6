"""What a policy may say to its host. Without a host, in tests, it is recorded.

Invariant: nothing here returns anything, so that no decision can depend on it.
"""


class _Recorder:
    def __init__(self):
        self.said = []

    def log(self, level, message):
        self.said.append(("log", level, message))

    def counter_add(self, name, value):
        self.said.append(("counter", name, value))

    def gauge_set(self, name, value):
        self.said.append(("gauge", name, value))


_recorder = _Recorder()
_sink = _recorder


def log(level, message):
    """A log line. `level` is `debug`, `info`, `warn` or `error`. The host cuts long ones."""
    _sink.log(level, str(message))


def counter_add(name, value=1):
    """Adds to a counter. `name` is lower case with underscores."""
    _sink.counter_add(name, value)


def gauge_set(name, value):
    """Sets a gauge."""
    _sink.gauge_set(name, float(value))


def connect(sink):
    """Speaks to a real host from here on: called by the build's entry module."""
    global _sink
    _sink = sink


def take_said():
    """What was said since the last call: for tests."""
    said, _recorder.said = _recorder.said, []
    return said

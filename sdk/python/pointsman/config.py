"""Settings: what an operator wrote, checked. An exception in a policy's constructor refuses the plugin."""

import math


def only(config, *names):
    """Refuses settings other than these."""
    for name in config:
        if name not in names:
            known = f"are {', '.join(names)}" if names else "is none"
            raise ValueError(f"unknown setting `{name}`; there {known}")


def number(config, name, otherwise, least=-math.inf, most=math.inf):
    """A number within bounds, or `otherwise` if it is not set."""
    value = config.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"`{name}` is {value!r}; it must be a number from {least} to {most}")
    return value

"""One line a check; the exit status says whether all passed."""

import sys
import traceback

failed = []


def check(name):
    """Runs the function at once and says how it went."""

    def run(body):
        try:
            body()
        except Exception:
            failed.append(name)
            print(f"FAIL {name}")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"ok   {name}")
        sys.stdout.flush()
        return body

    return run


def finish():
    print(f"{len(failed)} failed" if failed else "all passed")
    sys.exit(1 if failed else 0)


def refused(call, kind, **expected):
    """The call fails with this class of error, whose attributes are these."""
    try:
        call()
    except kind as error:
        for name, wanted in expected.items():
            got = getattr(error, name)
            assert wanted == got or (isinstance(wanted, str) and isinstance(got, str) and wanted in got), (name, got)
        return error
    raise AssertionError(f"{kind.__name__} was expected")

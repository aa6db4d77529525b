"""Write errors as CPython does."""

import sys


def write_error(text):
    """Write to stderr, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text)


def show(failure):
    """Print an exception as PyErr_Print() does. SystemExit out of the hook goes on."""
    kind = type(failure)
    sys.last_type, sys.last_value, sys.last_traceback = kind, failure, failure.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = failure
    second = None
    if not hasattr(sys, "excepthook"):
        write_error("sys.excepthook is missing\n")
        sys.__excepthook__(kind, failure, failure.__traceback__)
        return
    try:
        sys.excepthook(kind, failure, failure.__traceback__)
    except SystemExit:
        raise
    except BaseException as error:
        second = error
    if second is not None:
        second.__traceback__ = second.__traceback__.tb_next
        write_error("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, second.__traceback__)
        write_error("\nOriginal exception was:\n")
        sys.__excepthook__(kind, failure, failure.__traceback__)
    if kind is KeyboardInterrupt:
        try:
            exec("raise KeyboardInterrupt")  # noqa: S102  a string of code that fails so makes CPython end by SIGINT
        except KeyboardInterrupt:
            pass

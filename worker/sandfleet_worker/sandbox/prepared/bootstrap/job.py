"""The hook that is the job, by the form of its command."""

import sys

from sandfleet_worker.sandbox.prepared.bootstrap.c_api import Value
from sandfleet_worker.sandbox.prepared.bootstrap.command_text import compile_silently, dedent
from sandfleet_worker.sandbox.prepared.bootstrap.errors import show, write_error
from sandfleet_worker.sandbox.prepared.bootstrap.put_away import put_back

_IGNORE_COOKIE = 0x0800  # PyCF_IGNORE_COOKIE: the text of -c is UTF-8, whatever its first lines say


class Job:
    """The hook that is the job, by the form of its command."""

    def __init__(self, api, excepthook):
        self.api, self.excepthook = api, excepthook

    def _begin(self):
        """Undo what CPython sets when it calls a hook."""
        sys.excepthook = self.excepthook
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)

    def _begin_in_c(self):
        self._begin()
        # ctypes counts its call as a level of recursion; since 3.12, levels of C count by themselves.
        if sys.version_info < (3, 12):
            self.api.leave_recursion()

    def string(self, code):
        """Return the hook for the text of -c."""
        sys.audit("cpython.run_command", code)
        try:
            data = code.encode()
        except UnicodeEncodeError as error:
            failure = error.with_traceback(None)
            return lambda *_: (
                self._begin(),
                write_error("Unable to decode the command from the command line:\n"),
                show(failure),
            )
        if sys.version_info >= (3, 13):
            data = self._register(code, data)
        run = self.api.run_string
        flags = self.api.flags(_IGNORE_COOKIE if sys.version_info >= (3, 10) else 0)
        run.argtypes = (Value(self.api.text(data), self._begin_in_c), Value(flags), Value(0))
        return run

    def _register(self, code, data):
        """Keep the lines for tracebacks, as 3.13 does before it runs a command; 3.14 takes its common indent away."""
        if sys.version_info >= (3, 14):
            data = dedent(data)
            code = data.decode()
        linecache = put_back("linecache")
        key = "<string>"
        if hasattr(linecache, "_interactive_cache"):  # since 3.13.1 it is kept by code object
            key = compile_silently(code)
        if key is not None:
            linecache._register_code(key, code, "<string>")
        return data

    def file(self, stream, filename, is_ours):
        """Return the hook for a script, or stdin."""
        run = self.api.run_file
        flags = self.api.flags(0)
        run.argtypes = (
            Value(stream),
            Value(self.api.text(filename), self._begin_in_c),
            Value(int(is_ours)),
            Value(flags),
        )
        return type(self._begin)(run, 0)

    def module(self, name, is_named):
        """Return the hook for -m, a folder or a zip file."""

        def job(*_):
            self._begin()
            try:
                import runpy

                runpy._run_module_as_main(name, is_named)
            except SystemExit:
                raise
            except BaseException as error:
                failure = error
            else:
                sys.exit(0)
            failure.__traceback__ = failure.__traceback__.tb_next
            show(failure)

        return job

    def message(self, text, code):
        """Return the hook of a job that fails with a sentence."""

        def job(*_):
            self._begin()
            write_error(text)
            sys.exit(code)

        return job

"""The functions of the C API that `python3` itself calls for a command, a file and stdin."""

import sys

from sandfleet_worker.sandbox.prepared.bootstrap.checks import Unfit


class Value:
    """One argument of a C function that is called with others: hooks get an exception's three parts."""

    def __init__(self, value, before=None):
        self.value, self.before = value, before

    def from_param(self, _):
        """Return what ctypes passes on."""
        if self.before is not None:
            self.before()
        return self.value


class _Ended(int):
    """0 from the C API: end by exit code 0. No Python function may run any more: the job may trace it."""

    leave = property(sys.exit)


class _Failed:
    """-1 from the C API: it has printed the exception; the interpreter ends by exit code 1, or by SIGINT."""

    leave = None


class Api:
    """The functions, and the C types of their arguments."""

    def __init__(self):
        try:
            import _ctypes
        except ImportError as error:
            raise Unfit("unfit: this Python has no _ctypes: %s" % error) from None

        class Pointer(_ctypes._SimpleCData):
            _type_ = "P"

        class Int(_ctypes._SimpleCData):
            _type_ = "i"

        class Object(_ctypes._SimpleCData):
            _type_ = "O"

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
            _restype_ = Int

        class Text(_ctypes._SimpleCData):
            _type_ = "z"

        library = _ctypes.dlopen(None, 2)

        def function(name):
            return Function(_ctypes.dlsym(library, name))

        self.pointer, self.int, self.text = Pointer, Int, Text
        self.run_string = function("PyRun_SimpleStringFlags")
        self.run_file = function("PyRun_AnyFileExFlags")
        self.get_importer = function("PyImport_GetImporter")
        self.get_importer.argtypes, self.get_importer.restype = (Object,), Object
        self.fdopen = function("fdopen")
        self.fdopen.argtypes, self.fdopen.restype = (Int, Text), Pointer
        self.stdin = Pointer.from_address(_ctypes.dlsym(library, "stdin"))
        self.leave_recursion = function("Py_LeaveRecursiveCall")
        self.leave_recursion.restype = None
        for run in (self.run_string, self.run_file):
            run.restype = {0: _Ended(0), -1: _Failed()}.__getitem__
            run.errcheck = "{0.leave}".format

    def flags(self, bits):
        """Return a PyCompilerFlags for this version."""
        return (self.int * 2)(bits, sys.version_info[1])

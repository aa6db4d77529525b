"""The program that a prepared interpreter runs: it imports, waits for a job, and becomes that job without a fork.

It is given to `python3 -c` in an image, so it stands alone: CPython 3.9 to 3.14, the standard
library, nothing of sandfleet. `python_source.source()` makes it shorter.

Arguments: the descriptors of the request, the report and the job's stdin, stdout and stderr; then
the modules to import, with commas. Reports are lines: `p` prepared, `t` a job was taken, `x REASON`.

How the job's code runs: CPython runs it, by the functions of its C API that `python3` itself uses
for a command, a file and stdin. They are called as `sys.excepthook` after this program has ended by an
exception. So no frame of this program is below the job's, in no traceback and in no stack. `-m`,
folders and zip files go through runpy, with one frame of this program below. No traceback shows it.
"""

import os
import sys

_MOST_REASON = 500
_WATCHED_FOLDERS = ("/tmp", "/dev/shm")  # noqa: S108
_IGNORE_COOKIE = 0x0800  # PyCF_IGNORE_COOKIE: the text of -c is UTF-8, whatever its first lines say


class _Unfit(Exception):
    """This interpreter cannot become a job; the message tells why."""


class _Become(BaseException):
    """Ends this program; CPython then calls `sys.excepthook`, which is the job."""


# --- The preparation ---


def _check_interpreter():
    if sys.implementation.name != "cpython":
        raise _Unfit("unfit: %s is not CPython" % sys.implementation.name)
    if not (3, 9) <= sys.version_info[:2] <= (3, 14):
        raise _Unfit("unfit: Python %d.%d is not supported: 3.9 to 3.14 are" % sys.version_info[:2])


def _check_environment():
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"):
        value = os.environ.get(name, "")
        if value and not all(folder.startswith("/") for folder in value.split(":")):
            raise _Unfit("%s has a relative folder: it depends on the job's working folder" % name)


def _import_all(names):
    for name in names:
        try:
            __import__(name)
        except BaseException as error:
            raise _Unfit("import %s: %s: %s" % (name, type(error).__name__, error)) from None


def _files_in_watched_folders():
    found = set()
    for folder in _WATCHED_FOLDERS:
        try:
            found.update(folder + "/" + name for name in os.listdir(folder))
        except OSError:
            continue  # the image has no such folder
    return found


def _check_leftovers(own_fds, files_before):
    """Refuse what a job must not inherit: it would be gone, or be shared with the preparation."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
    else:
        raise _Unfit("an import left a child process")
    import fcntl
    import stat

    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            continue  # the listing's own descriptor
        if fd in own_fds or stat.S_ISCHR(mode):
            continue
        if stat.S_ISSOCK(mode):
            raise _Unfit("an import left a socket open")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _Unfit("an import left a pipe or an event descriptor open: %s" % os.readlink("/proc/self/fd/" + name))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _Unfit("an import left a file open for writing: %s" % os.readlink("/proc/self/fd/" + name))
    files = _files_in_watched_folders() - files_before
    if files:
        raise _Unfit("an import left a file: %s" % min(files))


def _folders_searched():
    """Tell which folder stood behind each finder: the job's own may be mounted over it later."""
    found = {}
    for path, finder in sys.path_importer_cache.items():
        if hasattr(finder, "invalidate_caches"):
            try:
                status = os.stat(path)
            except OSError:
                continue
            found[path] = (status.st_dev, status.st_ino, status.st_mtime_ns)
    return found


_put_away = {}


def _put_back(name):
    """Give the job a module that its form of command has loaded from the start."""
    if name not in sys.modules and name in _put_away:
        sys.modules[name] = _put_away[name]
    return __import__(name)


def _put_linecache_away():
    """Since 3.13, CPython imports it for the text of -c, and keeps that text: it is this program's, not the job's."""
    if sys.version_info >= (3, 13) and list(sys.modules)[-1] == "linecache":
        linecache = _put_away["linecache"] = sys.modules.pop("linecache")
        linecache.cache.clear()
        getattr(linecache, "_interactive_cache", {}).clear()


_own = set()
"""The ids of objects with a finalizer that are made here after the freeze: the files below the job's streams."""


def _find_suspended_types():
    """Return the types whose objects run their `finally` when they are dropped; they have no `__del__`."""

    def generator():
        yield

    async def coroutine():
        pass

    async def async_generator():
        yield

    started = coroutine()
    started.close()
    return type(generator()), type(started), type(async_generator())


_SUSPENDED = _find_suspended_types()


def _has_finalizer(value):
    return isinstance(value, _SUSPENDED) or (hasattr(type(value), "__del__") and id(value) not in _own)


def _thaw(gc):
    """Run as the last of the job's exit functions: frozen objects would keep finalizers of the job from running."""
    if any(map(_has_finalizer, gc.get_objects())):
        gc.unfreeze()


# --- The request ---


class _Request:
    def __init__(self, body):
        self._body, self._at = body, 0
        self.flags = self._number()
        self.cwd = self._text()
        self.argv = [os.fsdecode(self._text()) for _ in range(self._number())]
        self.environment = [self._text() for _ in range(self._number())]
        if self.flags or self._at != len(body) or not self.argv:
            raise _Unfit("the request is not understood")
        form, needed = (*self.argv[1:2], "-")[0], 3
        if (
            not form
            or (form in ("-c", "-m") and len(self.argv) < needed)
            or (form[0] == "-" and form not in ("-", "-c", "-m"))
        ):
            raise _Unfit("a command of this form is not run by a prepared interpreter")

    def _number(self):
        self._at += 4
        if self._at > len(self._body):
            raise _Unfit("the request is cut off")
        return int.from_bytes(self._body[self._at - 4 : self._at], "little")

    def _text(self):
        begin = self._at
        self._at = self._body.index(b"\0", begin) + 1
        return self._body[begin : self._at - 1]


def _read(fd, count):
    data = b""
    while len(data) < count:
        part = os.read(fd, count - len(data))
        if not part:
            os._exit(0)  # nobody needs this interpreter any more
        data += part
    return data


def _report(fd, line):
    os.write(fd, line.encode("utf-8", "backslashreplace")[:_MOST_REASON].replace(b"\n", b" ") + b"\n")


# --- Becoming the job ---


def _set_environment(entries):
    import posix

    values = {}
    for entry in entries:
        name, equals, value = entry.partition(b"=")
        if equals and name:
            values.setdefault(name, value)
    # CPython sets it at its start if the locale is C (PEP 538).
    if b"LC_CTYPE" in os.environb:
        values.setdefault(b"LC_CTYPE", os.environb[b"LC_CTYPE"])
    for name in list(os.environb):
        os.unsetenv(name)
    os.environ._data.clear()
    posix.environ.clear()
    posix.environ.update(values)
    for name, value in values.items():
        os.environb[name] = value


def _buffer_size(raw):
    if sys.version_info >= (3, 14):
        return max(min(raw._blksize, 8192 * 1024), 128 * 1024)
    return raw._blksize if raw._blksize > 1 else 8192


def _set_streams(fds):
    """Put the job's descriptors at 0, 1 and 2, and start Python's streams anew in place, as its create_stdio() makes them."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    is_buffered = hasattr(sys.__stderr__.buffer, "raw")  # else PYTHONUNBUFFERED is set
    for number, (stream, name, mode) in enumerate(
        ((sys.__stdin__, "<stdin>", "r"), (sys.__stdout__, "<stdout>", "w"), (sys.__stderr__, "<stderr>", "w"))
    ):
        encoding, errors, buffer = stream.encoding, stream.errors, stream.buffer
        raw = type(getattr(buffer, "raw", buffer))(number, mode + "b", closefd=False)
        raw.name = name
        _own.add(id(raw))
        if hasattr(buffer, "raw"):
            buffer.__init__(raw, _buffer_size(raw))
        else:
            buffer = raw
        is_line = is_buffered and (number == 2 or raw.isatty())
        stream.__init__(buffer, encoding, errors, "\n", is_line, mode == "w" and not is_buffered)
        stream.mode = mode


def _refresh_finders(folders):
    """Forget what was found in folders that are others now: the image had none there, or a mount hides it."""
    for path, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            if os.path.exists(path):
                del sys.path_importer_cache[path]
        elif path in folders:
            try:
                status = os.stat(path)
            except OSError:
                del sys.path_importer_cache[path]
                continue
            if folders[path] != (status.st_dev, status.st_ino, status.st_mtime_ns):
                finder.invalidate_caches()


def _refresh_modules():
    """Set anew what modules of the standard library took from the process when they were imported."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.ORIGINAL_DIR = os.path.abspath(os.getcwd())
    logging = sys.modules.get("logging")
    if logging is not None:
        import time

        logging._startTime = type(logging._startTime)(
            time.time() if isinstance(logging._startTime, float) else time.time_ns()
        )


def _new_main():
    """Make the job's `__main__` with what CPython puts into one; this program keeps its own."""
    main = type(sys)("__main__")
    for name, value in globals().items():
        if name.startswith("__") and name != "__doc__":
            main.__dict__[name] = {} if name == "__annotations__" else value
    sys.modules["__main__"] = main


def _absolute(path):
    """As _Py_abspath() does it: nothing else is changed."""
    if path == ".":
        return os.getcwd()
    return path if path.startswith("/") else os.getcwd() + "/" + path


# --- The C API ---


class _Value:
    """One argument of a C function that is called with others: hooks get an exception's three parts."""

    def __init__(self, value, before=None):
        self.value, self.before = value, before

    def from_param(self, _):
        if self.before is not None:
            self.before()
        return self.value


class _Ended(int):
    """0 from the C API: end by exit code 0. No Python function may run any more: the job may trace it."""

    leave = property(sys.exit)


class _Failed:
    """-1 from the C API: it has printed the exception; the interpreter ends by exit code 1, or by SIGINT."""

    leave = None


class _Api:
    def __init__(self):
        try:
            import _ctypes
        except ImportError as error:
            raise _Unfit("unfit: this Python has no _ctypes: %s" % error) from None

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
        return (self.int * 2)(bits, sys.version_info[1])


class _Job:
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
        sys.audit("cpython.run_command", code)
        try:
            data = code.encode()
        except UnicodeEncodeError as error:
            failure = error.with_traceback(None)
            return lambda *_: (
                self._begin(),
                _write_error("Unable to decode the command from the command line:\n"),
                _show(failure),
            )
        if sys.version_info >= (3, 13):
            data = self._register(code, data)
        run = self.api.run_string
        flags = self.api.flags(_IGNORE_COOKIE if sys.version_info >= (3, 10) else 0)
        run.argtypes = (_Value(self.api.text(data), self._begin_in_c), _Value(flags), _Value(0))
        return run

    def _register(self, code, data):
        """Keep the lines for tracebacks, as 3.13 does before it runs a command; 3.14 takes its common indent away."""
        if sys.version_info >= (3, 14):
            data = _dedent(data)
            code = data.decode()
        linecache = _put_back("linecache")
        key = "<string>"
        if hasattr(linecache, "_interactive_cache"):  # since 3.13.1 it is kept by code object
            key = _compile_silently(code)
        if key is not None:
            linecache._register_code(key, code, "<string>")
        return data

    def file(self, stream, filename, is_ours):
        run = self.api.run_file
        flags = self.api.flags(0)
        run.argtypes = (
            _Value(stream),
            _Value(self.api.text(filename), self._begin_in_c),
            _Value(int(is_ours)),
            _Value(flags),
        )
        return type(self._begin)(run, 0)

    def module(self, name, is_named):
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
            _show(failure)

        return job

    def message(self, text, code):
        def job(*_):
            self._begin()
            _write_error(text)
            sys.exit(code)

        return job


def _change_filters(change):
    """Change the warnings' filters, as warnings.py does."""
    import _warnings

    if hasattr(_warnings, "_acquire_lock"):  # since 3.14
        _warnings._acquire_lock()
        try:
            change(_warnings.filters)
            _warnings._filters_mutated_lock_held()
        finally:
            _warnings._release_lock()
    else:
        change(_warnings.filters)
        _warnings._filters_mutated()


def _compile_silently(code):
    """Return the code object, or None: CPython compiles the text once more, and then warns or fails."""
    entry = ("ignore", None, Warning, None, 0)
    _change_filters(lambda filters: filters.insert(0, entry))
    try:
        return compile(code, "<string>", "exec", 0, True)
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return None
    finally:
        _change_filters(lambda filters: filters.remove(entry))


def _dedent(data):
    """As textwrap.dedent() and CPython 3.14's _PyUnicode_Dedent() do."""
    common = None
    lines = data.split(b"\n")
    for line in lines:
        if line.strip(b" \t"):
            indent = line[: len(line) - len(line.lstrip(b" \t"))]
            common = indent if common is None else os.path.commonprefix([common, indent])
    size = len(common or b"")
    return b"\n".join(line[size:] if line.strip(b" \t") else b"" for line in lines)


def _write_error(text):
    if sys.stderr is not None:
        sys.stderr.write(text)


def _show(failure):
    """Print an exception as PyErr_Print() does. SystemExit out of the hook goes on."""
    kind = type(failure)
    sys.last_type, sys.last_value, sys.last_traceback = kind, failure, failure.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = failure
    second = None
    if not hasattr(sys, "excepthook"):
        _write_error("sys.excepthook is missing\n")
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
        _write_error("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, second.__traceback__)
        _write_error("\nOriginal exception was:\n")
        sys.__excepthook__(kind, failure, failure.__traceback__)
    if kind is KeyboardInterrupt:
        try:
            exec("raise KeyboardInterrupt")  # noqa: S102  a string of code that fails so makes CPython end by SIGINT
        except KeyboardInterrupt:
            pass


def _choose(job, argv):
    """Set sys.argv and sys.path[0] by the form of the command, and return the hook that runs it."""
    form = argv[1] if len(argv) > 1 else "-"
    is_safe = getattr(sys.flags, "safe_path", False)
    path0 = ""
    if form == "-":
        sys.argv = argv[1:] or [""]
        sys.audit("cpython.run_stdin")
        hook = job.file(job.api.stdin, b"<stdin>", False)
    elif form == "-c":
        sys.argv = ["-c", *argv[3:]]
        hook = job.string(argv[2] + "\n")
    elif form == "-m":
        sys.argv = ["-m", *argv[3:]]
        sys.audit("cpython.run_module", argv[2])
        path0 = os.getcwd()
        hook = job.module(argv[2], True)
    else:
        sys.argv = argv[1:]
        path = _absolute(form)
        if job.api.get_importer(path) is not None:
            sys.audit("cpython.run_module", "__main__")
            path0, is_safe = path, False
            hook = job.module("__main__", False)
        else:
            path0 = os.path.dirname(os.path.realpath(form))
            hook = _open_file(job, argv[0], path)
    if not is_safe:
        sys.path.insert(0, path0)
    return hook


def _open_file(job, program, path):
    sys.audit("cpython.run_file", path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        shown = "'%s'" % path if sys.version_info < (3, 10) else repr(path)
        text = "%s: can't open file %s: [Errno %d] %s\n" % (program, shown, error.errno, error.strerror)
        return job.message(text, 2)
    return job.file(job.api.pointer(job.api.fdopen(fd, b"r")), os.fsencode(path), True)


def _prepare(own_fds, names):
    _put_linecache_away()
    if sys.path and sys.path[0] == "" and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder that a command of -c imports from; the job has its own
    files_before = _files_in_watched_folders()
    _import_all(names)
    kept = set(sys.modules)
    import gc

    api = _Api()
    _check_leftovers(own_fds, files_before)
    if names:
        import atexit

        atexit.register(_thaw, gc)
    for name in set(sys.modules) - kept:
        del sys.modules[name]
    gc.collect()
    if names:
        gc.freeze()
    return api


def _main():
    request_fd, report_fd, *stream_fds = map(int, sys.argv[1:6])
    try:
        _check_interpreter()
        _check_environment()
        names = [name for name in sys.argv[6].split(",") if name]
        api = _prepare({0, 1, 2, request_fd, report_fd, *stream_fds}, names)
    except _Unfit as reason:
        _report(report_fd, "x %s" % reason)
        os._exit(1)
    folders = _folders_searched()
    _report(report_fd, "p")
    body = _read(request_fd, int.from_bytes(_read(request_fd, 4), "little"))
    try:
        request = _Request(body)
        os.chdir(request.cwd)
        os.umask(0o022)
    except OSError as error:
        _report(report_fd, "x the working folder cannot be entered: %s" % error.strerror)
        os._exit(1)
    except (_Unfit, ValueError) as reason:
        _report(report_fd, "x %s" % reason)
        os._exit(1)
    _report(report_fd, "t")
    os.close(request_fd)
    os.close(report_fd)
    _set_environment(request.environment)
    _set_streams(stream_fds)
    _refresh_finders(folders)
    _refresh_modules()
    _new_main()
    if sys.version_info >= (3, 10):
        sys.orig_argv = list(request.argv)
    sys.excepthook = _choose(_Job(api, sys.excepthook), request.argv)
    raise _Become

"""Make this process the one that the job would find: environment, streams, finders, modules."""

import os
import sys

from sandfleet_worker.sandbox.prepared.bootstrap.finalizers import own_ids


def set_environment(entries):
    """Make the job's environment that of the process."""
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


def set_streams(fds):
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
        own_ids.add(id(raw))
        if hasattr(buffer, "raw"):
            buffer.__init__(raw, _buffer_size(raw))
        else:
            buffer = raw
        is_line = is_buffered and (number == 2 or raw.isatty())
        stream.__init__(buffer, encoding, errors, "\n", is_line, mode == "w" and not is_buffered)
        stream.mode = mode


def refresh_finders(folders):
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


def refresh_modules():
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


def new_main():
    """Make the job's `__main__` with what CPython puts into one; this program keeps its own."""
    main = type(sys)("__main__")
    for name, value in globals().items():
        if name.startswith("__") and name != "__doc__":
            main.__dict__[name] = {} if name == "__annotations__" else value
    sys.modules["__main__"] = main

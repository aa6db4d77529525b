"""Choose the hook by the form of the command."""

import os
import sys


def _absolute(path):
    """As _Py_abspath() does it: nothing else is changed; before 3.11, not even a dot."""
    if path == "." and sys.version_info >= (3, 11):
        return os.getcwd()
    return path if path.startswith("/") else os.getcwd() + "/" + path


def choose(job, argv):
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

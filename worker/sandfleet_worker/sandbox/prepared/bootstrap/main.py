"""Prepare, wait for a job, and become it."""

import os
import sys

from sandfleet_worker.sandbox.prepared.bootstrap.c_api import Api
from sandfleet_worker.sandbox.prepared.bootstrap.checks import (
    Unfit,
    check_environment,
    check_interpreter,
    check_leftovers,
    check_writable,
    find_searched_folders,
    import_all,
)
from sandfleet_worker.sandbox.prepared.bootstrap.command import choose
from sandfleet_worker.sandbox.prepared.bootstrap.finalizers import thaw
from sandfleet_worker.sandbox.prepared.bootstrap.job import Job
from sandfleet_worker.sandbox.prepared.bootstrap.process import (
    new_main,
    refresh_finders,
    refresh_modules,
    set_environment,
    set_streams,
)
from sandfleet_worker.sandbox.prepared.bootstrap.put_away import put_linecache_away
from sandfleet_worker.sandbox.prepared.bootstrap.request import Request, read, report


class _Become(BaseException):
    """Ends this program; CPython then calls `sys.excepthook`, which is the job."""


def _prepare(own_fds, names, writable):
    put_linecache_away()
    if sys.path and sys.path[0] == "" and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder that a command of -c imports from; the job has its own
    import_all(names)
    kept = set(sys.modules)
    import gc

    api = Api()
    check_leftovers(own_fds)
    check_writable(writable)
    if names:
        import atexit

        atexit.register(thaw, gc)
    for name in set(sys.modules) - kept:
        del sys.modules[name]
    gc.collect()
    if names:
        gc.freeze()
    return api


def main():
    """Prepare, take a job, and end so that CPython runs it."""
    request_fd, report_fd, *stream_fds = map(int, sys.argv[1:6])
    try:
        check_interpreter()
        check_environment()
        names = [name for name in sys.argv[6].split(",") if name]
        api = _prepare({0, 1, 2, request_fd, report_fd, *stream_fds}, names, sys.argv[7:])
    except Unfit as reason:
        report(report_fd, "x %s" % reason)
        os._exit(1)
    folders = find_searched_folders()
    report(report_fd, "p")
    body = read(request_fd, int.from_bytes(read(request_fd, 4), "little"))
    try:
        request = Request(body)
        os.chdir(request.cwd)
        os.umask(0o022)
    except OSError as error:
        report(report_fd, "x the working folder cannot be entered: %s" % error.strerror)
        os._exit(1)
    except (Unfit, ValueError) as reason:
        report(report_fd, "x %s" % reason)
        os._exit(1)
    report(report_fd, "t")
    os.close(request_fd)
    os.close(report_fd)
    set_environment(request.environment)
    set_streams(stream_fds)
    refresh_finders(folders)
    refresh_modules()
    new_main()
    if sys.version_info >= (3, 10):
        sys.orig_argv = list(request.argv)
    sys.excepthook = choose(Job(api, sys.excepthook), request.argv)
    raise _Become

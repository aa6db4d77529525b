"""Check whether an interpreter can become a job, and what its imports have left."""

import os
import sys


class Unfit(Exception):
    """This interpreter cannot become a job; the message tells why."""


def check_interpreter():
    """Refuse an interpreter that is not CPython of a known version."""
    if sys.implementation.name != "cpython":
        raise Unfit("unfit: %s is not CPython" % sys.implementation.name)
    if not (3, 9) <= sys.version_info[:2] <= (3, 14):
        raise Unfit("unfit: Python %d.%d is not supported: 3.9 to 3.14 are" % sys.version_info[:2])


def check_environment():
    """Refuse variables whose meaning depends on the working folder, which is the job's."""
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"):
        value = os.environ.get(name, "")
        if value and not all(folder.startswith("/") for folder in value.split(":")):
            raise Unfit("%s has a relative folder: it depends on the job's working folder" % name)


def import_all(names):
    """Import the modules; a failure is the reason why the preparation failed."""
    for name in names:
        try:
            __import__(name)
        except BaseException as error:
            raise Unfit("import %s: %s: %s" % (name, type(error).__name__, error)) from None


def check_writable(folders):
    """Refuse files in folders that were empty at the start, and that the job gets empty."""
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue  # the image's code may have closed it
        if names:
            raise Unfit("an import left a file: %s/%s" % (folder, min(names)))


def check_leftovers(own_fds):
    """Refuse what a job must not inherit: it would be gone, or be shared with the preparation."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
    else:
        raise Unfit("an import left a child process")
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
            raise Unfit("an import left a socket open")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise Unfit("an import left a pipe or an event descriptor open: %s" % os.readlink("/proc/self/fd/" + name))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Unfit("an import left a file open for writing: %s" % os.readlink("/proc/self/fd/" + name))


def find_searched_folders():
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

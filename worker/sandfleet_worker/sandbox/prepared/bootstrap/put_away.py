"""Hide modules that only the bootstrap loaded, so a job sees those of a fresh Python."""

import sys

_put_away = {}


def put_back(name):
    """Give the job a module that its form of command has loaded from the start."""
    if name not in sys.modules and name in _put_away:
        sys.modules[name] = _put_away[name]
    return __import__(name)


def put_linecache_away():
    """Since 3.13, CPython imports it for the text of -c, and keeps that text: it is this program's, not the job's."""
    if sys.version_info >= (3, 13) and list(sys.modules)[-1] == "linecache":
        linecache = _put_away["linecache"] = sys.modules.pop("linecache")
        linecache.cache.clear()
        getattr(linecache, "_interactive_cache", {}).clear()

"""Treat the text of -c as CPython does before it runs it."""

import os


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


def compile_silently(code):
    """Return the code object, or None: CPython compiles the text once more, and then warns or fails."""
    entry = ("ignore", None, Warning, None, 0)
    _change_filters(lambda filters: filters.insert(0, entry))
    try:
        return compile(code, "<string>", "exec", 0, True)
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return None
    finally:
        _change_filters(lambda filters: filters.remove(entry))


def dedent(data):
    """As textwrap.dedent() and CPython 3.14's _PyUnicode_Dedent() do."""
    common = None
    lines = data.split(b"\n")
    for line in lines:
        if line.strip(b" \t"):
            indent = line[: len(line) - len(line.lstrip(b" \t"))]
            common = indent if common is None else os.path.commonprefix([common, indent])
    size = len(common or b"")
    return b"\n".join(line[size:] if line.strip(b" \t") else b"" for line in lines)

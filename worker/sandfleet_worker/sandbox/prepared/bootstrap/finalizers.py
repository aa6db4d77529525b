"""Let finalizers of the job run at its end, although what was imported ahead is frozen."""

own_ids = set()
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
    return isinstance(value, _SUSPENDED) or (hasattr(type(value), "__del__") and id(value) not in own_ids)


def thaw(gc):
    """Run as the last of the job's exit functions: frozen objects would keep finalizers of the job from running."""
    if any(map(_has_finalizer, gc.get_objects())):
        gc.unfreeze()

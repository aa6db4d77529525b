"""Find keys of Redis that never expire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    import redis

LASTING_KEYS = ("_kombu.binding", "unacked_mutex", "owners", "queues", "store:pins", "store:fleet", "shared_images")
"""Names of queues, exchanges, live workers and shared objects: few, however many jobs there were.

All other keys need a TTL.
"""
# One call however many keys there are: thousands wait for their TTL while a session of tests runs,
# and each test looks.
FIND = """
local found = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  if redis.call('TTL', name) == -1 then found[#found + 1] = name end
end
return found
"""


def lasting_keys(client: redis.Redis, allowed: tuple[str, ...] = LASTING_KEYS) -> list[str]:
    """Return the keys without a TTL, but for those whose names begin with one of `allowed`."""
    found: Any = client.eval(FIND, 0)
    names = [name.decode(errors="replace") for name in found]
    return sorted(name for name in names if not name.removeprefix(KEY_PREFIX).startswith(allowed))

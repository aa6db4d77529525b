"""Opens what the pages read: the fleet's Redis, the history and the acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet.channel.redis_channel import RedisChannel
from sandfleet.history.file_history import FileHistory

from sandfleet_web.pages.operator_acts import OperatorActs
from sandfleet_web.pages.site import Site, Sources

if TYPE_CHECKING:
    from sandfleet_config.web_settings import WebSettings

    from sandfleet_web.pages.users import Users


def open_site(settings: WebSettings, users: Users, *, is_mounted: bool = False) -> Site:
    """Return the site of the settings; nothing is connected before the first page."""
    channel, history = RedisChannel(settings), FileHistory(settings.history_file)
    sources = Sources(channel.fleet_state, channel, history, OperatorActs(channel, history))
    return Site(sources, users, settings.web.pages, is_mounted=is_mounted)

"""Flower's logs as JSON: each line is an object, its own password's line too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from flower_pages import running_flower

if TYPE_CHECKING:
    from stage import Stage, Stock


@pytest.mark.parametrize("password", ["me:secret", ""])
def test_each_line_of_flower_is_an_object(module_stage: Stage, stock: Stock, password: str) -> None:
    settings = {"SANDFLEET_LOG_FORMAT": "json", "FLOWER_BASIC_AUTH": password, "SANDFLEET_HOST": "host-7"}
    with running_flower(module_stage, **settings) as flower:
        stock.outcome(stock.submit("true"))
        flower.ask("/tasks")
        flower.ask("/no/such/page")
    lines = [json.loads(line) for line in flower.log_path.read_text().splitlines()]
    assert {line["service.name"] for line in lines} == {"flower"}
    assert {line["host.name"] for line in lines} == {"host-7"}
    assert any("made for this run" in line["message"] for line in lines) == (not password)

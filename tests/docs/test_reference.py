"""The reference says what the code says, and no row of it is empty."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet_config.contract import CONTRACT_VERSIONS
from sandfleet_config.spec import SandboxSpec

if TYPE_CHECKING:
    from docs_fleet import DocsFleet

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


@pytest.mark.parametrize("name", ["settings_table", "commands_page", "keys_page", "metrics_page"])
def test_the_page_shows_what_the_code_has(name: str) -> None:
    module = importlib.import_module(name)
    page = module.PAGE.read_text()
    assert module.rewrite(page) == page, f"run: python scripts/{name}.py --write"


def test_spec_outcome_and_codes_are_those_of_the_models() -> None:
    assert importlib.import_module("contract_pages").find_changes() == {}, (
        "run: python scripts/contract_pages.py --write"
    )


def test_the_recipe_is_that_of_the_model() -> None:
    assert importlib.import_module("recipe_pages").find_changes() == {}, "run: python scripts/recipe_pages.py --write"


@pytest.mark.parametrize("name", ["spec", "outcome", "codes", "settings"])
def test_each_row_has_its_prose(name: str) -> None:
    rows = [line for line in (REFERENCE / f"{name}.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    assert [row for row in rows if re.search(r"\| *\|$", row)] == []


def test_a_field_that_is_new_has_an_empty_row() -> None:
    module = importlib.import_module("contract_pages")
    page = (REFERENCE / "codes.md").read_text().replace("| `TIMEOUT` |", "| `TIME_IS_UP` |")
    (row,) = [line for line in module.rewrite("codes", page).splitlines() if line.startswith("| `TIMEOUT`")]
    assert row == "| `TIMEOUT` | limit | no | `SandboxTimeout` | 124 |  |  |"


def test_each_contract_version_is_told_with_all_its_fields() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (REFERENCE / "contract.md").read_text(), re.MULTILINE)
    assert tuple(int(number) for number, _ in rows) == CONTRACT_VERSIONS
    told = {name for _, text in rows for name in re.findall(r"`(\w+)`", text)}
    assert told == set(SandboxSpec.model_fields)
    versions = dict(re.findall(r"^\| `(\w+)[`.].* \| (\d) \| ", (REFERENCE / "spec.md").read_text(), re.MULTILINE))
    assert {name: dict(rows)[version] for name, version in versions.items() if name not in dict(rows)[version]} == {}


def test_the_sample_jobs_run(docs_fleet: DocsFleet) -> None:
    jobs = [json.loads(line) for line in (REFERENCE / "jobs.jsonl").read_text().splitlines()]
    used = {name for job in jobs for name in job}
    assert used <= set(SandboxSpec.model_fields)
    with Fleet(Settings(redis_url=SecretStr(docs_fleet.stage.redis_url))) as fleet:
        ended = [job.outcome(timeout=60) for job in fleet.submit_many(jobs)]
    assert [outcome.code for outcome in ended] == ["OK", "OK", "EXIT_NONZERO", "OK", "OK"]
    assert [outcome.stdout.text for outcome in ended[:4]] == ["42\n", "HELLO\n", "", "hi\n"]
    assert ended[4].stdout.truncated

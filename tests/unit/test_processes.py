"""How a host's processes are counted, and what each of them gets."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from sandfleet_config.environment import describe_settings_faults
from sandfleet_config.logs import JsonFormatter, LineFormatter
from sandfleet_config.metrics_settings import MetricsSettings
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.processes import count_processes
from sandfleet_config.settings import SettingsInvalid, WarmSettings, WorkerSettings
from sandfleet_worker.commands.supervise import check_ports, new_environment, share_boots, share_settings
from sandfleet_worker.system.supervisor import describe_end

if TYPE_CHECKING:
    from collections.abc import Mapping


def new_settings(**values: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"concurrency": 8, **values})


@pytest.mark.parametrize(
    ("cores", "slots", "expected"), [(1, 8, 1), (12, 12, 1), (13, 13, 2), (96, 96, 8), (96, 3, 3), (97, 97, 9)]
)
def test_auto_is_one_process_for_each_dozen_cores_and_no_more_than_slots(cores: int, slots: int, expected: int) -> None:
    assert count_processes("auto", slots, cores) == expected


def test_a_number_is_taken_as_it_is() -> None:
    assert count_processes(5, slots=2, cores=1) == 5
    assert new_settings().process_count == 1


@pytest.mark.parametrize("value", ["0", "65", "-1", "many", "", "1.5", True, "9" * 5000])
def test_another_number_of_processes_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        new_settings(processes=value)
    assert describe_settings_faults(caught.value) == "SANDFLEET_PROCESSES: must be a number from 1 to 64, or auto"


@pytest.mark.parametrize(("size", "sizes"), [(8, [3, 3, 2]), (2, [1, 1, 0]), (0, [0, 0, 0]), (9, [3, 3, 3])])
def test_the_processes_share_the_spares_of_the_worker(size: int, sizes: list[int]) -> None:
    settings = new_settings(processes=3, warm=WarmSettings(size=size))
    shares = [share_settings(settings, number) for number in (1, 2, 3)]

    assert [share.warm.size for share in shares] == sizes
    assert {share.concurrency for share in shares} == {8}, "slots are the host's"
    assert {share.process_count for share in shares} == {1}, "each counts only its own memory"


@pytest.mark.parametrize(
    ("count", "budget", "spare", "own"), [(2, 1024, 256, 512), (8, 1024, 256, 256), (4, 128, 256, 128)]
)
def test_the_processes_share_the_memory_of_prepared_spares(count: int, budget: int, spare: int, own: int) -> None:
    prepared = PreparedSettings(budget_bytes=budget << 20, spare_bytes=spare << 20)
    share = share_settings(new_settings(processes=count, prepared=prepared), 1).prepared

    assert (share.budget_bytes >> 20, share.spare_bytes >> 20) == (own, spare)


def test_each_process_serves_its_metrics_at_a_port_of_its_own() -> None:
    settings = new_settings(processes=2, metrics=MetricsSettings(port=9188))
    assert [share_settings(settings, number).metrics.port for number in (1, 2)] == [9188, 9189]
    assert [share_settings(new_settings(processes=2), number).metrics.port for number in (1, 2)] == [0, 0]

    check_ports(new_settings(metrics=MetricsSettings(port=65534)), 2)
    with pytest.raises(SettingsInvalid, match="65534 is too high: each of 3 processes takes a port"):
        check_ports(new_settings(metrics=MetricsSettings(port=65534)), 3)


@pytest.mark.parametrize(("count", "cores", "boots"), [(1, 4, 8), (2, 4, 4), (3, 4, 3), (8, 2, 1)])
def test_together_they_boot_as_many_sandboxes_at_once_as_one(count: int, cores: int, boots: int) -> None:
    assert share_boots(count, cores) == boots


def test_the_processes_have_the_options_of_start_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("sandfleet_concurrency", "2")
    monkeypatch.setenv("SANDFLEET_PROCESSES", "auto")
    env: Mapping[str, str] = new_environment(new_settings(queue="other"), 3)

    told = {key: value for key, value in env.items() if key.upper().startswith("SANDFLEET_")}
    wanted = {"SANDFLEET_CONCURRENCY": "8", "SANDFLEET_QUEUE": "other", "SANDFLEET_PROCESSES": "3"}
    assert {key: told[key] for key in wanted} == wanted
    assert "sandfleet_concurrency" not in told
    assert env["PATH"] == os.environ["PATH"]


def test_a_line_says_which_of_several_processes_wrote_it() -> None:
    line, json = LineFormatter(), JsonFormatter("sandfleet-worker", "1")
    record = logging.LogRecord("x", logging.INFO, "", 0, "job ended\nINFO", (), None)
    alone = line.format(record)
    for formatter in (line, json):
        formatter.name_process(2)

    assert line.format(record) == alone.replace("INFO job", "INFO [2] job")
    assert '"sandfleet.process":2' in json.format(record)


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-40, "signal 40")]
)
def test_every_end_of_a_process_has_words(code: int, text: str) -> None:
    assert describe_end(code) == text

from __future__ import annotations

import pytest
from sandfleet_config.units import format_bytes, format_count, format_cpu, format_limit, format_seconds


def test_bytes_are_formatted_in_the_units_that_people_type() -> None:
    for count, said in {
        0: "0 bytes",
        1: "1 byte",
        1000: "1000 bytes",
        4096: "4 KiB",
        1536: "1.5 KiB",
        512 << 20: "512 MiB",
        64 << 30: "64 GiB",
        64 * 10**9: "64 GB",
        1 << 62: "4194304 TiB",
    }.items():
        assert format_bytes(count) == said


def test_different_sizes_have_different_texts() -> None:
    for count in (512 << 20, 96 << 20, 10**9, 1 << 62, 8 << 20):
        near = {format_bytes(count + step) for step in range(-3, 4)}
        assert len(near) == 7, near
    assert format_bytes((512 << 20) + 1) == "536870913 bytes (about 512 MiB)"


def test_cpu_and_time_are_formatted_as_people_type_them() -> None:
    assert [format_cpu(quota) for quota in (1, 50_000, 100_000, 250_000)] == [
        "0.00001 cores",
        "0.5 cores",
        "1 core",
        "2.5 cores",
    ]
    assert [format_seconds(seconds) for seconds in (0.001, 2.5, 60.0, 3600, 3601, 604800)] == [
        "0.001 s",
        "2.5 s",
        "60 s",
        "3600 s (1 h)",
        "3601 s",
        "604800 s (7 days)",
    ]


def test_the_name_of_a_field_chooses_its_unit() -> None:
    assert format_limit("resources.memory_bytes", 1 << 20) == "1 MiB"
    assert format_limit("resources.cpu_quota", 50_000) == "0.5 cores (cpu_quota 50000)"
    assert format_limit("resources.pids_limit", 7) == "7 processes and threads"
    assert format_limit("timeout", 1.5) == "1.5 s"
    assert format_limit("SANDFLEET_LEASE_SECONDS", 300) == "300 s"
    assert format_limit("priority", 9.0) == "9"


@pytest.mark.parametrize(("number", "text"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches")])
def test_one_thing_is_counted_in_the_singular(number: int, text: str) -> None:
    assert format_count(number, "batch", "batches") == text
    assert format_count(number, "job") == f"{number} job{'' if number == 1 else 's'}"

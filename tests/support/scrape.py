"""Read metrics as Prometheus does."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SECONDS = 10


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(port: int, token: str = "", path: str = "/metrics", host: str = "127.0.0.1") -> tuple[int, str]:
    """Return status and body."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Scraped:
    """The metrics of one answer."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}

    @classmethod
    def read(cls, port: int, token: str = "", path: str = "/metrics") -> Scraped:
        status, text = ask(port, token, path)
        assert status == 200, text
        return cls(text)

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {sample.name for family in self.families.values() for sample in family.samples}

    @property
    def series(self) -> int:
        return sum(len(family.samples) for family in self.families.values())

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

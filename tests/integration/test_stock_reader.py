"""A process without sandfleet reads the code and the outcome from a stock ``AsyncResult``."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stage import Stage, Stock

READER = """
import json, sys
sys.path.append(sys.argv[1])
from celery import Celery
app = Celery(broker=sys.argv[2], backend=sys.argv[2])
app.conf.result_backend_transport_options = {"global_keyprefix": "sandfleet:"}
result = app.AsyncResult(sys.argv[3])
try:
    value = result.get(timeout=30)
    kind, args = None, [value["code"], None, value]
except Exception as error:
    kind, args = type(error).__name__, error.args
assert not any(name.startswith("sandfleet") for name in sys.modules), "sandfleet is importable here"
print(json.dumps([result.state, kind, args]))
"""


def read(stock: Stock, job_id: str) -> Any:
    # -I and -S: neither the checkout nor the .pth files of editable installs are on the path.
    command = [sys.executable, "-I", "-S", "-c", READER]
    arguments = [sysconfig.get_path("purelib"), stock.app.conf.result_backend, job_id]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "fields", "expected"),
    [
        (["sh", "-c", "echo hello"], {}, ("SUCCESS", None, "OK")),
        (["sh", "-c", "exit 3"], {}, ("SUCCESS", None, "EXIT_NONZERO")),
        (["sleep", "9"], {"timeout": 0.2}, ("FAILURE", "SandboxTimeout", "TIMEOUT")),
        (["true"], {"image": "nowhere"}, ("FAILURE", "ImageNotFound", "IMAGE_NOT_FOUND")),
        (["true"], {"security": {"privileged": True}}, ("FAILURE", "SecurityViolation", "SECURITY_VIOLATION")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_stock_async_result_reads_the_code(
    module_stage: Stage, stock: Stock, command: list[str], fields: dict[str, Any], expected: tuple[str, str | None, str]
) -> None:
    job_id = stock.submit(*command, fields=fields)
    stock.wait(job_id)

    state, kind, args = read(stock, job_id)

    assert (state, kind, args[0]) == expected
    assert args[2]["code"] == expected[2]
    assert args[2]["job_id"] == job_id

"""``Backend.Execute``: run a piece of code and return its value.

Steps: check the request, find the runner, check health, resolve the image, build the spec, run it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError
from sandfleet_config.bounds import MAX_ITEM_BYTES
from sandfleet_config.errors import ClientNotConfigured, DaemonUnavailable, ImageUnavailable, SandboxError, SpecInvalid
from sandfleet_config.execute import BackendInfo, ExecuteRequest, ExecuteResult, LimitsEnforced
from sandfleet_config.spec import DEFAULT_TIMEOUT_SECONDS
from sandfleet_config.wire import new_spec, raise_faults

from sandfleet.execute.interfaces import AsyncSandboxRunner, RunResult

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sandfleet_config.outcome import Outcome, SandboxResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.waker import CancelSignal
    from sandfleet.execute.interfaces import HealthChecker, ImageResolver, Logger, SandboxRunner

KIND: Final = "gvisor"
DEFAULT_PROFILE: Final = "standard"
DEFAULT_IMAGE: Final = "python"
DEFAULT_RUNSC_PATH: Final = "runsc"
DEFAULT_ROOT_DIR: Final = "/var/run/gvisor"
DEFAULT_PLATFORM: Final = "systrap"
USER: Final = "nobody:nogroup"
VALUE_PREFIX: Final = "__OUT__:"
VALUE_KEY: Final = "__out"
MICROSECONDS_PER_MILLI: Final = 1000

INTERPRETERS: Final[Mapping[str, tuple[str, str, str]]] = {
    # language: program, the flag before code, the argument that reads code from stdin
    "python": ("python3", "-c", "-"),
    "shell": ("sh", "-c", "-s"),
    "sh": ("sh", "-c", "-s"),
    "bash": ("bash", "-c", "-s"),
}


@dataclass(frozen=True)
class Config:
    """Configuration of a backend; the default image is the starter image ``python``."""

    image: str = DEFAULT_IMAGE
    runsc_path: str = DEFAULT_RUNSC_PATH
    root_dir: str = DEFAULT_ROOT_DIR
    platform: str = DEFAULT_PLATFORM
    network_mode: str = "none"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    client: SandboxRunner | None = field(default=None, repr=False)
    image_resolver: ImageResolver | None = field(default=None, repr=False)
    health_checker: HealthChecker | None = field(default=None, repr=False)
    logger: Logger | None = field(default=None, repr=False)


class Backend:
    """Executes code with gVisor; safe for concurrent use if its runner is."""

    def __init__(self, config: Config | None = None, *, client: SandboxRunner | None = None) -> None:
        self.config = config or Config()
        self._client = client or self.config.client

    @property
    def kind(self) -> str:
        """The kind of backend: ``gvisor``."""
        return KIND

    def execute(
        self,
        request: ExecuteRequest | Mapping[str, Any],
        *,
        deadline: float | None = None,
        cancel: CancelSignal | None = None,
    ) -> ExecuteResult:
        """Run the request's code and return its result, whatever its exit code.

        Raises:
            SpecInvalid: the request is faulty; `SecurityViolation` outranks it.
            ClientNotConfigured: there is no runner.
            DaemonUnavailable: the health check failed; the cause is chained.
            SandboxError: the class of any other code the runner raised.
        """
        runner, spec, profile = self._prepare(request)
        with self._logged():
            result = runner.run(spec, deadline=deadline, cancel=cancel)
        return self._finish(result, spec, profile)

    async def execute_async(
        self, request: ExecuteRequest | Mapping[str, Any], *, deadline: float | None = None
    ) -> ExecuteResult:
        """Do what `execute` does without blocking the loop; cancelling the task cancels the job.

        A runner without ``run_async`` runs in another thread.
        """
        runner, spec, profile = await asyncio.to_thread(self._prepare, request)
        with self._logged():
            if isinstance(runner, AsyncSandboxRunner):
                result: SandboxResult = await runner.run_async(spec, deadline=deadline)
            else:
                result = await asyncio.to_thread(runner.run, spec, deadline=deadline)
        return self._finish(result, spec, profile)

    def _prepare(self, request: ExecuteRequest | Mapping[str, Any]) -> tuple[SandboxRunner, SandboxSpec, str]:
        """Check everything that can be checked before a run; return runner, spec and profile."""
        parsed = _check_request(request)
        runner = self._client
        if runner is None:
            raise ClientNotConfigured.of("no runner is configured: pass Config(client=...), such as a FleetRunner")
        self._check_health()
        image = self._resolve_image()
        profile = parsed.profile or DEFAULT_PROFILE
        spec = self._new_spec(parsed, image, profile)
        self._log("info", "executing %s under profile %s in image %s", parsed.language, profile, image)
        return runner, spec, profile

    @contextlib.contextmanager
    def _logged(self) -> Generator[None]:
        """Log how a run failed."""
        try:
            yield
        except SandboxError as error:
            self._log("error", "execution failed: %s", error)
            raise

    def _finish(self, result: SandboxResult, spec: SandboxSpec, profile: str) -> ExecuteResult:
        self._log("info", "execution ended with exit %d after %.3f s", result.exit_code, result.duration)
        return self._new_result(result, spec, profile)

    def _check_health(self) -> None:
        if self.config.health_checker is None:
            return
        try:
            self.config.health_checker.ping()
        except Exception as error:
            self._log("error", "health check failed: %s", error)
            raise DaemonUnavailable.of(f"the health check failed: {error}") from error

    def _resolve_image(self) -> str:
        if self.config.image_resolver is None:
            return self.config.image
        try:
            return self.config.image_resolver.resolve(self.config.image)
        except SandboxError:
            raise
        except Exception as error:
            self._log("error", "image %s cannot be resolved: %s", self.config.image, error)
            raise ImageUnavailable.of(f"image {self.config.image} cannot be resolved: {error}") from error

    def _new_spec(self, request: ExecuteRequest, image: str, profile: str) -> SandboxSpec:
        command, stdin = new_command(request.language, request.code)
        config, limits, is_dev = self.config, request.limits, profile == "dev"
        return new_spec(
            {
                "image": image,
                "command": command,
                "stdin": stdin,
                "resources": {
                    "memory_bytes": limits.memory_bytes,
                    "cpu_quota": limits.cpu_quota_millis * MICROSECONDS_PER_MILLI,
                    "pids_limit": limits.pids_max,
                    "disk_bytes": limits.disk_bytes,
                },
                "security": {
                    "user": USER,
                    "read_only_rootfs": not is_dev,
                    "network_mode": config.network_mode if is_dev else "none",
                },
                # The host decides these three; defaults are left out, since its runsc may be
                # elsewhere.
                "platform": "" if config.platform == DEFAULT_PLATFORM else config.platform,
                "runsc_path": "" if config.runsc_path == DEFAULT_RUNSC_PATH else config.runsc_path,
                "root_dir": "" if config.root_dir == DEFAULT_ROOT_DIR else config.root_dir,
                "timeout": request.timeout or config.timeout_seconds,
                "labels": {**request.metadata, "runtime.profile": profile, "runtime.backend": KIND},
            }
        )

    def _new_result(self, result: SandboxResult, spec: SandboxSpec, profile: str) -> ExecuteResult:
        outcome = result.outcome if isinstance(result, RunResult) else None
        platform = outcome.runtime.platform if outcome else ""
        details = {
            "platform": platform or self.config.platform,
            "networkMode": spec.security.network_mode,
            "profile": profile,
        }
        return ExecuteResult(
            value=parse_value(result.stdout),
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            duration=result.duration,
            backend=BackendInfo(kind=KIND, details=details),
            limits_enforced=read_limits_enforced(outcome),
        )

    def _log(self, level: str, msg: str, *args: object) -> None:
        if self.config.logger is not None:
            with contextlib.suppress(Exception):  # logging is best effort: it must never fail an execution
                getattr(self.config.logger, level)(msg, *args)


def _check_request(request: ExecuteRequest | Mapping[str, Any]) -> ExecuteRequest:
    if isinstance(request, ExecuteRequest):
        return request
    try:
        return ExecuteRequest.model_validate(request)
    except ValidationError as error:
        raise_faults(error, ExecuteRequest)


def new_command(language: str, code: str) -> tuple[list[str], str]:
    """Return the command for `code`, and its stdin: the code if it is too long for an argument.

    Raises:
        SpecInvalid: the language is not known.
    """
    if language not in INTERPRETERS:
        message = f"must be one of {', '.join(INTERPRETERS)}"
        raise SpecInvalid.of(f"language: {message}", errors=[{"field": "language", "message": message}])
    program, flag, from_stdin = INTERPRETERS[language]
    if len(code.encode(errors="replace")) > MAX_ITEM_BYTES:
        return [program, from_stdin], code
    return [program, flag, code], ""


def parse_value(stdout: str) -> Any:
    """Return the value that the code printed: ``__OUT__:`` and JSON, or an object with ``__out``.

    The last such line counts; None if there is none. Text after ``__OUT__:`` that is no JSON is the
    value.
    """
    for raw in reversed(stdout.splitlines()):
        line = raw.strip()
        if line.startswith(VALUE_PREFIX):
            text = line.removeprefix(VALUE_PREFIX).strip()
            found, value = _parse_json(text)
            return value if found else text
        if line.startswith("{"):
            found, value = _parse_json(line)
            if found and isinstance(value, dict) and VALUE_KEY in value:
                return cast("dict[str, Any]", value)[VALUE_KEY]
    return None


def _parse_json(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


def read_limits_enforced(outcome: Outcome | None) -> LimitsEnforced:
    """Return which limits were enforced; a limit that the outcome does not name was not."""
    limits = outcome.limits if outcome else {}

    def is_enforced(name: str) -> bool:
        return name in limits and limits[name].enforced

    return LimitsEnforced(
        timeout=is_enforced("timeout"),
        memory=is_enforced("memory_bytes"),
        cpu=is_enforced("cpu_quota"),
        pids=is_enforced("pids_limit"),
        disk=is_enforced("disk_bytes"),
    )

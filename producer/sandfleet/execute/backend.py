"""``Backend.Execute``: run a piece of code and return its value.

Steps: check the request, find the runner, check health, resolve the image, build the specs, run
them: code of a compiled language has a job of its own that compiles it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError
from sandfleet_config.errors import ClientNotConfigured, DaemonUnavailable, ImageUnavailable, SandboxError
from sandfleet_config.execute import BackendInfo, ExecuteRequest, ExecuteResult
from sandfleet_config.spec import DEFAULT_TIMEOUT_SECONDS
from sandfleet_config.wire import raise_faults

from sandfleet.execute.interfaces import RunResult, run_async
from sandfleet.execute.result import read_limits_enforced, read_outcome
from sandfleet.execute.steps import Steps, is_interpreted
from sandfleet.languages.table import read_table

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sandfleet_config.outcome import SandboxResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.waker import CancelSignal
    from sandfleet.execute.interfaces import HealthChecker, ImageResolver, Logger, SandboxRunner
    from sandfleet.languages.table import LanguageTable

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


@dataclass(frozen=True)
class Config:
    """Configuration of a backend; the default image is the starter image ``python``.

    Languages other than Python and the shells have images of their own; an `image` that is not the
    default holds for them, too.
    """

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

    def __init__(
        self,
        config: Config | None = None,
        *,
        client: SandboxRunner | None = None,
        languages: LanguageTable | None = None,
    ) -> None:
        """`languages` default to the built-in table."""
        self.config = config or Config()
        self._client = client or self.config.client
        self._languages = languages or read_table()

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

        Code that does not compile is a result, too: its `compile` is the outcome of the compiler.

        Raises:
            SpecInvalid: the request is faulty; `SecurityViolation` outranks it.
            ClientNotConfigured: there is no runner.
            DaemonUnavailable: the health check failed; the cause is chained.
            SandboxError: the class of any other code the runner raised.
        """
        runner, steps, profile = self._prepare(request)
        compiled: SandboxResult | None = None
        if steps.compile is not None:
            with self._logged(), _names_compile():
                compiled = runner.run(steps.compile, deadline=deadline, cancel=cancel)
            if compiled.exit_code:
                return self._finish(steps, compiled, profile, compiled)
        spec = steps.new_run(compiled)
        with self._logged():
            result = runner.run(spec, deadline=deadline, cancel=cancel)
        return self._finish(steps, result, profile, compiled)

    async def execute_async(
        self, request: ExecuteRequest | Mapping[str, Any], *, deadline: float | None = None
    ) -> ExecuteResult:
        """Do what `execute` does without blocking the loop; cancelling the task cancels the job.

        A runner without ``run_async`` runs in another thread.
        """
        runner, steps, profile = await asyncio.to_thread(self._prepare, request)
        compiled: SandboxResult | None = None
        if steps.compile is not None:
            with self._logged(), _names_compile():
                compiled = await run_async(runner, steps.compile, deadline)
            if compiled.exit_code:
                return self._finish(steps, compiled, profile, compiled)
        spec = steps.new_run(compiled)
        with self._logged():
            result = await run_async(runner, spec, deadline)
        return self._finish(steps, result, profile, compiled)

    def _prepare(self, request: ExecuteRequest | Mapping[str, Any]) -> tuple[SandboxRunner, Steps, str]:
        """Check everything that can be checked before a run; return runner, steps and profile."""
        parsed = _check_request(request)
        runner = self._client
        if runner is None:
            raise ClientNotConfigured.of("no runner is configured: pass Config(client=...), such as a FleetRunner")
        self._check_health()
        image = self._resolve_image(self._choose_image(parsed.language))
        profile = parsed.profile or DEFAULT_PROFILE
        steps = Steps(parsed, image, self._new_fields(parsed, profile), self._languages)
        self._log("info", "executing %s under profile %s in image %s", parsed.language, profile, image)
        return runner, steps, profile

    @contextlib.contextmanager
    def _logged(self) -> Generator[None]:
        """Log how a run failed."""
        try:
            yield
        except SandboxError as error:
            self._log("error", "execution failed: %s", error)
            raise

    def _finish(
        self, steps: Steps, result: SandboxResult, profile: str, compiled: SandboxResult | None
    ) -> ExecuteResult:
        """Return the result of the last job; `compiled` is that of the compile job, maybe the same."""
        if steps.failed_in_shared(result):
            compiled = result
        step = "compilation" if result is compiled else "execution"
        self._log("info", "%s ended with exit %d after %.3f s", step, result.exit_code, result.duration)
        return self._new_result(result, steps.first, profile, compiled)

    def _check_health(self) -> None:
        if self.config.health_checker is None:
            return
        try:
            self.config.health_checker.ping()
        except Exception as error:
            self._log("error", "health check failed: %s", error)
            raise DaemonUnavailable.of(f"the health check failed: {error}") from error

    def _choose_image(self, language: str) -> str:
        """Return the image of a language: the configured one, unless the language has its own."""
        if self.config.image != DEFAULT_IMAGE or is_interpreted(language, self._languages):
            return self.config.image
        return self._languages.find(language)[1].image

    def _resolve_image(self, image: str) -> str:
        if self.config.image_resolver is None:
            return image
        try:
            return self.config.image_resolver.resolve(image)
        except SandboxError:
            raise
        except Exception as error:
            self._log("error", "image %s cannot be resolved: %s", image, error)
            raise ImageUnavailable.of(f"image {image} cannot be resolved: {error}") from error

    def _new_fields(self, request: ExecuteRequest, profile: str) -> dict[str, object]:
        """Return the fields of the spec without image, command and input."""
        config, limits, is_dev = self.config, request.limits, profile == "dev"
        return {
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

    def _new_result(
        self, result: SandboxResult, spec: SandboxSpec, profile: str, compiled: SandboxResult | None
    ) -> ExecuteResult:
        outcome = result.outcome if isinstance(result, RunResult) else None
        platform = outcome.runtime.platform if outcome else ""
        details = {
            "platform": platform or self.config.platform,
            "networkMode": spec.security.network_mode,
            "profile": profile,
        }
        return ExecuteResult(
            value=None if result is compiled else parse_value(result.stdout),
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            duration=result.duration,
            compile=None if compiled is None else read_outcome(compiled),
            backend=BackendInfo(kind=KIND, details=details),
            limits_enforced=read_limits_enforced(outcome),
        )

    def _log(self, level: str, msg: str, *args: object) -> None:
        if self.config.logger is not None:
            with contextlib.suppress(Exception):  # logging is best effort: it must never fail an execution
                getattr(self.config.logger, level)(msg, *args)


@contextlib.contextmanager
def _names_compile() -> Generator[None]:
    """Say in an error that it is of the compile job."""
    try:
        yield
    except SandboxError as error:
        code, message, *rest = error.args
        raise type(error)(code, f"the compile job: {message}", *rest) from error


def _check_request(request: ExecuteRequest | Mapping[str, Any]) -> ExecuteRequest:
    if isinstance(request, ExecuteRequest):
        return request
    try:
        return ExecuteRequest.model_validate(request)
    except ValidationError as error:
        raise_faults(error, ExecuteRequest)


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

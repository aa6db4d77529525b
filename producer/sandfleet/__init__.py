"""Submit jobs that run in gVisor sandboxes on a fleet of hosts, and collect their outcomes.

A name is imported at its first use: the command line needs few of them, and starts in a third of
the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.lazy_names import import_lazily

if TYPE_CHECKING:
    from sandfleet_config.after import AfterSpec
    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.codes import Category, ErrorCode
    from sandfleet_config.errors import (
        ERROR_CLASSES,
        Cancelled,
        ClientNotConfigured,
        CommandNotExecutable,
        CommandNotFound,
        ControlError,
        DaemonUnavailable,
        DiskLimit,
        ExitNonZero,
        Expired,
        GVisorNotAvailable,
        HostError,
        HostResources,
        ImageInvalid,
        ImageNotFound,
        ImageUnavailable,
        InternalError,
        LimitError,
        OutOfMemory,
        OutputLimit,
        PidsLimit,
        ProgramError,
        RequestError,
        ResourceLimit,
        SandboxCreationFailed,
        SandboxError,
        SandboxExecutionFailed,
        SandboxTimeout,
        SecurityViolation,
        Signaled,
        SpecInvalid,
        SpecTooLarge,
        StoreUnavailable,
        UserInvalid,
        WorkerLost,
        WorkingDirInvalid,
    )
    from sandfleet_config.execute import BackendInfo, ExecuteLimits, ExecuteRequest, ExecuteResult, LimitsEnforced
    from sandfleet_config.files import ArtifactSpec, DatasetSpec, FileSpec
    from sandfleet_config.outcome import Artifact, Outcome, SandboxResult, StoredObject, StreamOutput
    from sandfleet_config.settings import Settings, SettingsInvalid
    from sandfleet_config.spec import OutputSpec, Payload, ResourceSpec, SandboxSpec, SecuritySpec

    from sandfleet.batch import Batch
    from sandfleet.channel.batch_control import LimitsState
    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.channel.records import BatchCounts, BatchState, CancelState, JobRecord
    from sandfleet.channel.waker import CancelSignal
    from sandfleet.collect.batch_output import BatchOutput
    from sandfleet.collect.chunks import OutputChunk
    from sandfleet.collect.live_stream import LiveStream
    from sandfleet.collect.stream import BatchStream, OutcomeStream
    from sandfleet.dead_letters import DeadLetters
    from sandfleet.errors import (
        ArtifactsNotSaved,
        BatchUnknown,
        FileMissing,
        FleetError,
        FleetUnavailable,
        IdempotencyConflict,
        JobExists,
        JobUnknown,
        OutputNotLive,
        PackageMissing,
        QueueFull,
        ResultsNotWritten,
        ResultTimeout,
    )
    from sandfleet.execute.backend import Backend, Config
    from sandfleet.execute.fleet_runner import FleetRunner
    from sandfleet.execute.interfaces import HealthChecker, ImageResolver, Logger, RunResult, SandboxRunner
    from sandfleet.files.artifacts import BatchArtifacts, JobArtifacts
    from sandfleet.files.reference import FileRef
    from sandfleet.fleet import Fleet
    from sandfleet.job import CancelResult, Job
    from sandfleet.languages.cases import Case
    from sandfleet.languages.language import Language
    from sandfleet.languages.program import Program
    from sandfleet.languages.result import CaseResult, Judgement, ProgramResult
    from sandfleet.languages.table import LanguageTable
    from sandfleet.results.columns import ColumnUnknown
    from sandfleet.results.table import Written
    from sandfleet.submit.mapping import MapStream

__all__ = [
    "ERROR_CLASSES",
    "AfterSpec",
    "Artifact",
    "ArtifactSpec",
    "ArtifactsNotSaved",
    "Backend",
    "BackendInfo",
    "Batch",
    "BatchArtifacts",
    "BatchCounts",
    "BatchLimits",
    "BatchOutput",
    "BatchState",
    "BatchStream",
    "BatchUnknown",
    "CancelResult",
    "CancelSignal",
    "CancelState",
    "Cancelled",
    "Case",
    "CaseResult",
    "Category",
    "ClientNotConfigured",
    "ColumnUnknown",
    "CommandNotExecutable",
    "CommandNotFound",
    "Config",
    "ControlError",
    "DaemonUnavailable",
    "DatasetSpec",
    "DeadLetter",
    "DeadLetters",
    "DiskLimit",
    "ErrorCode",
    "ExecuteLimits",
    "ExecuteRequest",
    "ExecuteResult",
    "ExitNonZero",
    "Expired",
    "FileMissing",
    "FileRef",
    "FileSpec",
    "Fleet",
    "FleetError",
    "FleetRunner",
    "FleetUnavailable",
    "GVisorNotAvailable",
    "HealthChecker",
    "HostError",
    "HostResources",
    "IdempotencyConflict",
    "ImageInvalid",
    "ImageNotFound",
    "ImageResolver",
    "ImageUnavailable",
    "InternalError",
    "Job",
    "JobArtifacts",
    "JobExists",
    "JobRecord",
    "JobUnknown",
    "Judgement",
    "Language",
    "LanguageTable",
    "LimitError",
    "LimitsEnforced",
    "LimitsState",
    "LiveStream",
    "Logger",
    "MapStream",
    "OutOfMemory",
    "Outcome",
    "OutcomeStream",
    "OutputChunk",
    "OutputLimit",
    "OutputNotLive",
    "OutputSpec",
    "PackageMissing",
    "Payload",
    "PidsLimit",
    "Program",
    "ProgramError",
    "ProgramResult",
    "QueueFull",
    "RequestError",
    "ResourceLimit",
    "ResourceSpec",
    "ResultTimeout",
    "ResultsNotWritten",
    "RunResult",
    "SandboxCreationFailed",
    "SandboxError",
    "SandboxExecutionFailed",
    "SandboxResult",
    "SandboxRunner",
    "SandboxSpec",
    "SandboxTimeout",
    "SecuritySpec",
    "SecurityViolation",
    "Settings",
    "SettingsInvalid",
    "Signaled",
    "SpecInvalid",
    "SpecTooLarge",
    "StoreUnavailable",
    "StoredObject",
    "StreamOutput",
    "UserInvalid",
    "WorkerLost",
    "WorkingDirInvalid",
    "Written",
]

_NAMES: Final = {
    "sandfleet_config.after": "AfterSpec",
    "sandfleet_config.batch_limits": "BatchLimits",
    "sandfleet_config.codes": "Category ErrorCode",
    "sandfleet_config.errors": (
        "ERROR_CLASSES Cancelled ClientNotConfigured CommandNotExecutable CommandNotFound "
        "ControlError DaemonUnavailable DiskLimit ExitNonZero Expired GVisorNotAvailable "
        "HostError HostResources ImageInvalid ImageNotFound ImageUnavailable InternalError "
        "LimitError OutOfMemory OutputLimit PidsLimit ProgramError RequestError ResourceLimit "
        "SandboxCreationFailed SandboxError SandboxExecutionFailed SandboxTimeout "
        "SecurityViolation Signaled SpecInvalid SpecTooLarge StoreUnavailable UserInvalid "
        "WorkerLost WorkingDirInvalid"
    ),
    "sandfleet_config.execute": ("BackendInfo ExecuteLimits ExecuteRequest ExecuteResult LimitsEnforced"),
    "sandfleet_config.files": "ArtifactSpec DatasetSpec FileSpec",
    "sandfleet_config.outcome": "Artifact Outcome SandboxResult StoredObject StreamOutput",
    "sandfleet_config.settings": "Settings SettingsInvalid",
    "sandfleet_config.spec": "OutputSpec Payload ResourceSpec SandboxSpec SecuritySpec",
    "sandfleet.batch": "Batch",
    "sandfleet.channel.batch_control": "LimitsState",
    "sandfleet.channel.dead_letter": "DeadLetter",
    "sandfleet.channel.records": "BatchCounts BatchState CancelState JobRecord",
    "sandfleet.channel.waker": "CancelSignal",
    "sandfleet.collect.batch_output": "BatchOutput",
    "sandfleet.collect.chunks": "OutputChunk",
    "sandfleet.collect.live_stream": "LiveStream",
    "sandfleet.collect.stream": "BatchStream OutcomeStream",
    "sandfleet.dead_letters": "DeadLetters",
    "sandfleet.errors": (
        "ArtifactsNotSaved BatchUnknown FileMissing FleetError FleetUnavailable "
        "IdempotencyConflict JobExists JobUnknown OutputNotLive PackageMissing QueueFull "
        "ResultsNotWritten ResultTimeout"
    ),
    "sandfleet.execute.backend": "Backend Config",
    "sandfleet.execute.fleet_runner": "FleetRunner",
    "sandfleet.execute.interfaces": "HealthChecker ImageResolver Logger RunResult SandboxRunner",
    "sandfleet.files.artifacts": "BatchArtifacts JobArtifacts",
    "sandfleet.files.reference": "FileRef",
    "sandfleet.fleet": "Fleet",
    "sandfleet.job": "CancelResult Job",
    "sandfleet.languages.cases": "Case",
    "sandfleet.languages.language": "Language",
    "sandfleet.languages.program": "Program",
    "sandfleet.languages.result": "CaseResult Judgement ProgramResult",
    "sandfleet.languages.table": "LanguageTable",
    "sandfleet.results.columns": "ColumnUnknown",
    "sandfleet.results.table": "Written",
    "sandfleet.submit.mapping": "MapStream",
}

__getattr__, __dir__ = import_lazily(__name__, _NAMES)

"""The options of ``sandfleet run``."""

from __future__ import annotations

from dataclasses import dataclass

from sandfleet.cli import options
from sandfleet.cli.spec_options import SpecOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(SpecOptions):
    """The command line of ``sandfleet run``."""

    command: options.Command = None
    image: options.RunImage = None
    lang: options.Language = ""
    cases: options.CasesFolder = None
    exact: options.Exact = False
    compile_timeout: options.CompileTimeout = 0.0
    form: options.CaseForm = "table"
    save: options.Save = None
    stdin: options.Stdin = False
    key: options.Key = ""
    is_json: options.OutcomeAsJson = False

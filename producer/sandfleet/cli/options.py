"""The options that the commands of `sandfleet` share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from sandfleet.cli import completion


def _parse_time(text: str | float) -> float:
    from sandfleet_config.units import parse_seconds

    if not isinstance(text, str):  # typer asks for its default, too
        return text
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Command: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="[--] COMMAND [ARG]", help="Default: the image's own.")
]
Image: TypeAlias = Annotated[str, typer.Option(help="The image to run in.")]
RunImage: TypeAlias = Annotated[
    str | None, typer.Option(help="The image to run in; default python, with --lang its own.")
]
Language: TypeAlias = Annotated[
    str,
    typer.Option(
        "--lang", help="Compile and run COMMAND, a local source file.", autocompletion=completion.complete_language
    ),
]
CasesFolder: TypeAlias = Annotated[
    str | None, typer.Option("--cases", metavar="FOLDER", help="Judge by its NAME.in and NAME.out; needs --lang.")
]
Exact: TypeAlias = Annotated[bool, typer.Option("--exact", help="White space counts in the outputs of --cases.")]
CompileTimeout: TypeAlias = Annotated[
    float, typer.Option(metavar="TIME", parser=_parse_time, help="Seconds to compile, or 2m; 0 is the language's.")
]
CaseForm: TypeAlias = Annotated[
    str, typer.Option("-o", "--output", help="Verdicts of --cases as table, wide, json, jsonl, csv or ids.")
]
Timeout: TypeAlias = Annotated[
    float, typer.Option(metavar="TIME", parser=_parse_time, help="Seconds until SIGTERM, or 10m; 0 is 30 s.")
]
Grace: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="TIME", parser=_parse_time, help="Seconds from SIGTERM to the kill; default 5."),
]
Memory: TypeAlias = Annotated[str, typer.Option(help="Such as 256MiB; 0 is the host's ceiling.")]
Cpu: TypeAlias = Annotated[float, typer.Option(help="Cores, such as 0.5; 0 is the host's ceiling.")]
Pids: TypeAlias = Annotated[int, typer.Option(help="Processes and threads; 0 is the host's ceiling.")]
Disk: TypeAlias = Annotated[str, typer.Option(help="Such as 64MiB; 0 is the host's ceiling.")]
Env: TypeAlias = Annotated[
    list[str] | None, typer.Option("--env", "-e", help="KEY=VALUE, or KEY from here; repeatable.")
]
Workdir: TypeAlias = Annotated[str, typer.Option("--workdir", "-w", help="Absolute path in the image.")]
User: TypeAlias = Annotated[str, typer.Option("--user", "-u", help="name, uid, name:group or uid:gid.")]
Labels: TypeAlias = Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; repeatable.")]
Requires: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="A label that the host must have, key=value; repeatable.")
]
RequiresOfLines: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="As of run, for lines without `requires`; repeatable.")
]
SaveAll: TypeAlias = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Save each job's artifacts in FOLDER/ID; needs --wait.")
]
Writable: TypeAlias = Annotated[bool, typer.Option("--writable", help="A writable root file system.")]
MaxOutput: TypeAlias = Annotated[str | None, typer.Option(help="Bytes kept a stream, such as 1MiB; default 64KiB.")]
Keep: TypeAlias = Annotated[
    str, typer.Option(help="head, tail or both.", autocompletion=completion.of_words("head", "tail", "both"))
]
OnOutputLimit: TypeAlias = Annotated[
    str,
    typer.Option("--on-output-limit", help="truncate or kill.", autocompletion=completion.of_words("truncate", "kill")),
]
StoreOutput: TypeAlias = Annotated[
    bool, typer.Option("--store-output", help="Keep what is past --max-output in the store, and print all of it.")
]
Live: TypeAlias = Annotated[
    bool, typer.Option("--live", help="Show the output while the job runs: run prints it, others see logs -f.")
]
Prepared: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Start in a Python with this preparation's imports done; off: never."),
]
Stdin: TypeAlias = Annotated[bool, typer.Option("--stdin", "-i", help="Send stdin to its end first; else it is empty.")]
StdinFile: TypeAlias = Annotated[str | None, typer.Option(help="Send this local file as stdin.")]
Files: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--file", metavar="SOURCE[:PATH]", help="A local file or folder to send; PATH begins in /work; repeatable."
    ),
]
Artifacts: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--artifact", metavar="GLOB", help="Files below /work to collect, such as 'out/**'; repeatable."),
]
DatasetNames: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--dataset", metavar="NAME", help="A dataset of the host, read-only in /data/NAME; repeatable."),
]
Save: TypeAlias = Annotated[str | None, typer.Option(metavar="FOLDER", help="Save the artifacts there.")]
Idempotent: TypeAlias = Annotated[
    bool, typer.Option("--idempotent", help="Queue only what an earlier call with this file and --batch did not.")
]
Ids: TypeAlias = Annotated[
    bool, typer.Option("--ids", help="Print the job ids; done by itself without --batch and --wait.")
]
Overwrite: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Queue: TypeAlias = Annotated[str | None, typer.Option(help="The queue; default SANDFLEET_QUEUE. Queues take turns.")]
Priority: TypeAlias = Annotated[int | None, typer.Option(help="0 (first) to 9; default 6.")]
QueueTtl: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="TIME", parser=_parse_time, help="Seconds until it expires in the queue, or 2h; default 1d."),
]
MaxAttempts: TypeAlias = Annotated[int | None, typer.Option(help="Charged starts at most; 1 is one start; default 3.")]
Key: TypeAlias = Annotated[str, typer.Option("--idempotency-key", help="The same key and spec are the same job.")]
OutcomeAsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the outcome instead of the output.")]
BatchName: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.complete_batch)]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Out: TypeAlias = Annotated[str | None, typer.Option(help="Append outcomes as JSON lines; - is stdout.")]
WaitTimeout: TypeAlias = Annotated[
    float | None, typer.Option(metavar="TIME", parser=_parse_time, help="Seconds to wait, or 10m; the jobs go on.")
]


def _check_on_done(name: str) -> str:
    from sandfleet_config.webhooks import check_endpoint

    try:
        return check_endpoint(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--on-done") from None


OnDone: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_check_on_done,
        help="Endpoint that gets a webhook when all of --batch have ended, as of each retry.",
    ),
]


def check_queue_name(name: str | None) -> str | None:
    """Return the name of ``--queue``.

    Raises:
        typer.BadParameter: no queue may have that name.
    """
    from sandfleet_config.queues import check_queue

    try:
        return name and check_queue(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--queue") from None

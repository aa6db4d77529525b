"""The options of commands that ask the history, as one filter."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from sandfleet.cli import completion
from sandfleet.cli.typed import read_labels
from sandfleet.history.words import Words, WordsInvalid, format_label, format_word, parse_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Batch: TypeAlias = Annotated[str, typer.Option(help="Of this batch.", autocompletion=completion.complete_batch)]
Host: TypeAlias = Annotated[str, typer.Option(help="Whose last attempt was on this host.")]
Queue: TypeAlias = Annotated[str, typer.Option(help="Of this queue.")]
Image: TypeAlias = Annotated[str, typer.Option(help="With this image.")]
Exit: TypeAlias = Annotated[str, typer.Option("--exit", metavar="NUMBER", help="Whose program exited with it.")]
Since: TypeAlias = Annotated[str, typer.Option(metavar="TIME", help="Ended since: 2h ago, or 2026-01-31T12:00 in UTC.")]
Until: TypeAlias = Annotated[str, typer.Option(metavar="TIME", help="Ended until; as --since.")]
Text: TypeAlias = Annotated[str, typer.Option(help="With this in their command line or message.")]
Filter: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("-f", "--filter", metavar="WORDS", help="Words as on the pages, such as 'attempts:>1 run:>10s'."),
]


def read_words(
    named: Mapping[str, str],
    lists: Mapping[str, Sequence[str] | None],
    labels: Sequence[str] | None,
    filters: Sequence[str] | None,
    text: str = "",
) -> Words:
    """Return the filter of the options: `named` have one value each, `lists` names.

    Raises:
        typer.BadParameter: a word cannot be read.
    """
    words = [format_word(key, value) for key, value in named.items() if value]
    words += [format_word(key, ",".join(values)) for key, values in lists.items() if values]
    words += [format_label(key, value) for key, value in read_labels(labels or []).items()]
    words += [format_word("", text)[1:]] if text else []
    try:
        return parse_words(" ".join([*words, *(filters or [])]), now=time.time())
    except WordsInvalid as error:
        raise typer.BadParameter(str(error)) from None

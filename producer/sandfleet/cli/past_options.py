"""The filters of jobs on the command line: their options, held once, as the words of the pages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Final, TypeAlias

import typer

from sandfleet.cli import completion, options
from sandfleet.cli.lists import Categories, Codes
from sandfleet.cli.typed import read_labels
from sandfleet.history.words import Words, WordsInvalid, format_label, format_text, format_word, parse_words

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


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """The options that all filters of jobs have; `read_words` returns any of them as one filter."""

    batch: Batch = ""
    label: options.Labels = None
    host: Host = ""
    queue: Queue = ""
    image: Image = ""
    words: Filter = None

    def read_words(self) -> Words:
        """Return the filter of the options.

        Raises:
            typer.BadParameter: a word cannot be read.
        """
        typed = {field.name: getattr(self, field.name) for field in fields(self)}
        words = [format_word(key, typed[name]) for name, key in _NAMED.items() if typed.get(name)]
        words += [format_word(name, ",".join(typed[name])) for name in _LISTS if typed.get(name)]
        words += [format_label(key, value) for key, value in read_labels(self.label or []).items()]
        words += [format_text(typed["text"])] if typed.get("text") else []
        try:
            return parse_words(" ".join([*words, *(self.words or [])]), now=time.time())
        except WordsInvalid as error:
            raise typer.BadParameter(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class EndOptions(FilterOptions):
    """A filter that also asks how a job ended, and for a text."""

    code: Codes = None
    category: Categories = None
    text: Text = ""


@dataclass(frozen=True, kw_only=True)
class PastOptions(EndOptions):
    """A filter of ended runs."""

    exit_code: Exit = ""
    since: Since = ""
    until: Until = ""


_NAMED: Final[Mapping[str, str]] = {
    **{name: name for name in ("batch", "host", "queue", "image", "since", "until")},
    "exit_code": "exit",
}
"""Options with one value, and their words."""
_LISTS: Final = ("code", "category", "state")
"""Options with names, which are their words, too."""

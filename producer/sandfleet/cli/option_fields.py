"""Write the options of a command as the fields of a dataclass, so that commands share them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable

L = TypeVar("L")


def takes_fields(line: type[L]) -> Callable[[Callable[[L], None]], Callable[..., None]]:
    """Return a decorator that gives the function one `line`.

    typer sees the fields of the dataclass `line` as parameters.
    """
    kind: Any = line
    hints = get_type_hints(line, include_extras=True)
    own = list(inspect.get_annotations(line))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # Those of the command itself come first in its help.
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(fields[name]), annotation=hints[name])
        for name in dict.fromkeys([*own, *fields])
    ]

    def decorate(function: Callable[[L], None]) -> Callable[..., None]:
        def call(**options: Any) -> None:
            function(line(**options))

        command: Any = call
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__signature__ = inspect.Signature(parameters)
        return call

    return decorate


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default

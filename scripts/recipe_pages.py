"""Renew the table of a recipe's fields and its JSON Schema in the reference.

Without --write, say what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from contract_pages import describe_type
from generated import find_stale, print_or_write_stale, replace_part
from pydantic import BaseModel
from sandfleet_worker.sandbox.image.recipe.model import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parent.parent / "docs/reference"
PAGE, SCHEMA = REFERENCE / "recipe.md", REFERENCE / "recipe.schema.json"
BEGIN, END = "<!-- recipe:begin -->", "<!-- recipe:end -->"


def find_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield field, type, default and meaning."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        (item,) = get_args(field.annotation)[:1] or (None,)
        default = "required" if field.is_required() else json.dumps(field.default) if field.default else "unset"
        if isinstance(item, type) and issubclass(item, BaseModel):
            yield f"`{path}`", "list of tables", "unset", field.description or ""
            yield from find_rows(item, f"{path}[].")
        else:
            kind = describe_type(field.annotation, name).removesuffix(" or null").replace("object of", "table of")
            yield f"`{path}`", kind, default, field.description or ""


def new_table() -> str:
    """Return the fields as Markdown."""
    head = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in find_rows())])


def new_schema() -> str:
    """Return the JSON Schema of a recipe, for editors that check TOML."""
    schema = Recipe.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of sandfleet"}
    return json.dumps({**head, **schema, "title": head["title"]}, indent=2, ensure_ascii=False) + "\n"


def find_changes() -> dict[Path, str]:
    """Return each file that is not as the code says, with what it should hold."""
    wanted = {PAGE: replace_part(PAGE.read_text(), BEGIN, END, new_table()), SCHEMA: new_schema()}
    return find_stale(wanted)


if __name__ == "__main__":
    print_or_write_stale(find_changes())

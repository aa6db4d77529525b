"""Print the diagram of the packages, from the real imports; with --write, put it into its page."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
from generated import print_or_write, replace_part

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/explanation/packages.md"
BEGIN, END = "<!-- packages:begin -->", "<!-- packages:end -->"
FOLDERS = {"sandfleet_config": "config", "sandfleet": "producer", "sandfleet_worker": "worker", "sandfleet_web": "web"}
CONTAINERS = (*FOLDERS, "sandfleet_worker.sandbox")
"""Packages that get a diagram of their own."""
ROW_CELLS = 76


def new_diagrams() -> str:
    """Return a diagram and a table for each of `CONTAINERS`, as Markdown."""
    graph = grimp.build_graph(*FOLDERS)
    lines: list[str] = []
    for container in CONTAINERS:
        imports = find_imports(graph, container)
        lines += [f"## {container}", "", "```text", *draw(imports), "```", ""]
        lines += ["| part | what it is for | imports of the others |", "|---|---|---|"]
        for name in sorted(imports):
            others = ", ".join(f"`{other}`" for other in sorted(imports[name]))
            lines.append(f"| `{name}` | {read_purpose(container, name)} | {others or 'none'} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def find_imports(graph: grimp.ImportGraph, container: str) -> dict[str, set[str]]:
    """Return which siblings each direct child of `container` imports, at any depth."""
    children = {child.rpartition(".")[2]: child for child in graph.find_children(container)}
    found: dict[str, set[str]] = {}
    for name, module in children.items():
        modules = {module, *graph.find_descendants(module)}
        imported = {target for source in modules for target in graph.find_modules_directly_imported_by(source)}
        siblings = {target.removeprefix(f"{container}.").partition(".")[0] for target in imported - modules}
        found[name] = (siblings & children.keys()) - {name}
    return found


def draw(imports: dict[str, set[str]]) -> list[str]:
    """Return the parts in rows; each imports from rows below its own only.

    Raises:
        ValueError: there is a circle.
    """
    levels: dict[str, int] = {}
    while len(levels) < len(imports):
        ready = {name for name, others in imports.items() if name not in levels and others <= levels.keys()}
        if not ready:
            msg = f"a circle of imports among {', '.join(sorted(imports.keys() - levels.keys()))}"
            raise ValueError(msg)
        levels |= {name: 1 + max((levels[other] for other in imports[name]), default=0) for name in ready}
    rows = [sorted(name for name in levels if levels[name] == level) for level in range(max(levels.values()), 0, -1)]
    lines = [f"┌{'─' * ROW_CELLS}┐"]
    for row in rows:
        lines += [f"│{'   '.join(row):^{ROW_CELLS}}│", f"├{'─' * ROW_CELLS}┤"]
    return [*lines[:-1], f"└{'─' * ROW_CELLS}┘"]


def read_purpose(container: str, name: str) -> str:
    """Return the first sentence of a module's docstring."""
    root, *rest = container.split(".")
    folder = ROOT.joinpath(FOLDERS[root], root, *rest)
    path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|")


def rewrite(text: str) -> str:
    """Return the page's text with the diagrams of today."""
    return replace_part(text, BEGIN, END, new_diagrams())


if __name__ == "__main__":
    print_or_write(PAGE, new_diagrams, rewrite)

"""Imports run downwards only, also those that stand inside functions."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import upfeat

ROOT = Path(upfeat.__file__).parent


def sources() -> dict[str, str]:
    """The package's modules by dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def imports(tree: ast.AST, inner: bool = False) -> Iterator[tuple[str, bool]]:
    """Imported names, and whether they are imported within a function; not those for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", inner
        yield from imports(node, inner or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def circles(modules: Mapping[str, str]) -> list[str]:
    """Imports through which a module comes back to itself."""
    edges: dict[str, dict[str, bool]] = {}
    for name, text in modules.items():
        edges[name] = {}
        for imported, inner in imports(ast.parse(text)):
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules and target != name:
                edges[name][target] = inner and edges[name].get(target, True)

    def below(name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = edges[todo.pop()].keys() - seen
            seen |= new
            todo += new
        return seen

    return [
        f"{name} -> {target}{' within a function' if inner else ''}"
        for name in sorted(modules)
        for target, inner in sorted(edges[name].items())
        if name in below(target)
    ]


def test_no_module_comes_back_to_itself() -> None:
    assert circles(sources()) == []


def test_a_circle_within_a_function_is_found() -> None:
    modules = {
        "a": "import b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c",
        "b": "def call():\n    from a import thing",
        "c": "import a",
    }
    assert circles(modules) == ["a -> b", "b -> a within a function"]

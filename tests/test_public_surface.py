"""The public names, guarded: to add or remove one is to edit ``tests/public_names.txt``.

``python -m tests.test_public_surface --update`` rewrites the list from the sources.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "upfeat"
LIST = Path(__file__).with_name("public_names.txt")
ROOMS_WITH_LISTS = ("app", "cli", "layers", "ops", "training", "upsamplers")
OPTIONAL_PACKAGES = ("triton", "onnx", "onnxruntime", "onnxscript")


def module_name(path: Path) -> str:
    parts = ("upfeat", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def declared_names(path: Path) -> list[str]:
    """The public names of a source file, read without importing it.

    They are those of its ``__all__``. Outside the rooms that list theirs, a module without it
    offers its classes, its functions and the values that a docstring follows.
    """
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if "__all__" in assigned(node):
            return list(ast.literal_eval(node.value))
    if path.name == "__init__.py" or path.relative_to(PACKAGE).parts[0] in ROOMS_WITH_LISTS:
        return []
    found = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(node.name)
        elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found += assigned(node)
    return [name for name in dict.fromkeys(found) if name[0] != "_"]  # once for all overloads


def assigned(node: ast.stmt) -> list[str]:
    """The names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def public_modules() -> dict[str, Path]:
    modules = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    private = {name for name in modules if any(part[0] == "_" for part in name.split("."))}
    return {name: path for name, path in modules.items() if name not in private}


def public_names() -> list[str]:
    return sorted(
        f"{module}.{name}"
        for module, path in public_modules().items()
        for name in declared_names(path)
    )


def listed_names() -> list[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def write_list() -> None:
    head = (
        "# Public names of upfeat. Removing one breaks users: say so in CHANGELOG.md.\n"
        "# Rewritten by: python -m tests.test_public_surface --update\n"
    )
    LIST.write_text(head + "\n".join(public_names()) + "\n", encoding="utf-8")


def test_names_are_the_listed_ones():
    names, listed = set(public_names()), set(listed_names())
    advice = "edit tests/public_names.txt (--update does it) and CHANGELOG.md"
    assert not listed - names, f"names disappeared: {sorted(listed - names)}; {advice}"
    assert not names - listed, f"new names: {sorted(names - listed)}; {advice}"


def test_list_is_sorted_without_repeats():
    listed = listed_names()
    assert listed == sorted(set(listed))


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_public_names_exist_and_are_documented(name: str):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in OPTIONAL_PACKAGES:
            pytest.skip(f"{name} needs {error.name}")
        raise
    except RuntimeError as error:
        if "active drivers" in str(error):  # Triton 3.2, which comes with PyTorch 2.6
            pytest.skip(f"{name}: this Triton needs a GPU to be imported")
        raise
    assert module.__doc__, f"{name} has no docstring"
    exported = declared_names(public_modules()[name])
    assert len(exported) == len(set(exported)), f"{name} repeats a name"
    for exported_name in exported:
        value = getattr(module, exported_name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{exported_name} has no docstring"


def test_top_level_names_are_the_documented_calls():
    import upfeat

    assert set(upfeat.__all__) <= set(dir(upfeat))
    for name in (
        *("list_upsamplers", "create_upsampler", "from_official", "Upsampler"),
        *("create_backbone", "Pipeline"),
    ):
        assert callable(getattr(upfeat, name))


def test_unknown_name_is_an_attribute_error():
    import upfeat

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = upfeat.no_such_name


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.test_public_surface --update")
    write_list()

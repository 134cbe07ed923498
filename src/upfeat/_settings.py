"""Settings that are checked when they are made: of training runs, objectives and what they build.

A misspelt name or a value of a wrong type is refused in one sentence that names the setting, by its
dotted path from the outermost settings.
"""

import ast
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeAlias, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from upfeat.errors import UnknownNameError

SHOWN_LETTERS = 100  # of a value that does not fit

# What a value must be, by pydantic's name of its complaint; braces hold what it says beside.
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list such as [1, 2]",
    "list_type": "a list such as [1, 2]",
    "dict_type": 'named values such as {"name": 1}',
    "model_type": 'named values such as {"name": 1}',
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Sides: TypeAlias = tuple[PositiveInt, PositiveInt]  # (H, W) in pixels


class SettingsError(ValueError):
    """Settings that do not fit; ``problems`` are pairs of a dotted path and what is wrong there."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(_sentence(path, text) for path, text in problems))


class UnknownSettingError(UnknownNameError):
    """A setting that does not exist, below a path that the settings around it prolong."""

    def __init__(self, name: str, known: Collection[str], path: str = "") -> None:
        self.name, self.known, self.path = name, known, path
        super().__init__("setting", name, known, prefix=path and f"{path}.")

    def inside(self, path: str) -> "UnknownSettingError":
        """Return the same error as the settings around it see it."""
        return UnknownSettingError(self.name, self.known, _joined(path, self.path))


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, values are checked, nothing changes later.

    Raises:
        UnknownNameError: a setting does not exist; the message names the nearest ones.
        ValueError: a value does not fit; the message names its setting and what fits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise readable_error(error) from error

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        for name in content if isinstance(content, Mapping) else ():
            if name not in cls.model_fields:
                raise UnknownSettingError(str(name), list(cls.model_fields))
        return content


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for a function or a class, as the types in its signature have them.

    JSON knows no tuples and no paths: a list becomes a tuple where the signature asks for one.
    Nothing is called, and arguments that are missing are none of this function's business.

    Raises:
        UnknownNameError: the signature has no such argument; the message names the nearest ones.
        ValueError: a value is of another type.

    Example:
        >>> def network(width: int, sizes: tuple[int, ...] = ()) -> None: ...
        >>> check_arguments(network, {"sizes": [2, 3]})
        {'sizes': (2, 3)}
        >>> try:
        ...     check_arguments(network, {"with": 4})
        ... except ValueError as error:
        ...     print(error)
        unknown setting 'with'; did you mean 'width'? Known: sizes, width
    """
    parameters = inspect.signature(function).parameters
    # Of a class the signature is that of its constructor; so are the types.
    types = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    named = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    free = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    checked = {}
    for name, value in arguments.items():
        if name not in named and not free:
            raise UnknownSettingError(name, named)
        kind: TypeAdapter[Any] = TypeAdapter(
            types.get(name, Any) if name in named else Any,
            config=ConfigDict(arbitrary_types_allowed=True),
        )
        try:
            checked[name] = kind.validate_python(value)
        except ValidationError as error:
            raise SettingsError([(name, _expected(error.errors()[0]))]) from error
    return checked


def readable_error(error: ValidationError) -> ValueError:
    """Return pydantic's complaints, with those of nested settings, as one error of one sentence."""
    problems = []
    for item in error.errors():
        # The alternatives of a union are in the path too, under names that are no settings.
        names = [str(part) for part in item["loc"]]
        path = _joined(*(name for name in names if name.isidentifier() or name.isdecimal()))
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, UnknownSettingError):
            return inner.inside(path)
        if isinstance(inner, SettingsError):
            problems += [(_joined(path, below), text) for below, text in inner.problems]
        elif isinstance(inner, Exception):
            problems.append((path, str(inner)))
        else:
            problems.append((path, _expected(item)))
    return SettingsError(problems)


def _joined(*paths: str) -> str:
    return ".".join(filter(None, paths))


def _expected(item: Mapping[str, Any]) -> str:
    kind = str(item["type"])
    if kind == "missing":
        return "is missing"
    if kind == "json_invalid":
        return f"no valid JSON ({item['ctx']['error']})"
    if kind == "extra_forbidden":
        return "is not known here"
    if kind in _WANTED:
        wanted = _WANTED[kind]
        wanted = wanted.format(**item["ctx"]) if "{" in wanted and "ctx" in item else wanted
        return f"must be {wanted}, got {_short(item['input'])}"
    text = str(item["msg"])
    if text.startswith("Input should be "):
        return f"must be {text.removeprefix('Input should be ')}, got {item['input']!r}"
    return f"={item['input']!r}: {text}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def _sentence(path: str, text: str) -> str:
    if not path:
        return text
    if text.startswith("="):
        return path + text
    return f"{path} {text}" if text.startswith(("must be ", "is ")) else f"{path}: {text}"


# -- name(option=value) ----------------------------------------------------------------------------

_CALL = re.compile(r"(?P<name>[\w./-]+)\s*\((?P<options>.*)\)", re.DOTALL)


def read_call(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """Read ``name`` or ``name(option=value, ...)``, whose values are literals.

    Example:
        >>> from upfeat._settings import read_call
        >>> read_call("guided_filter(radius=4)", "an upsampler")
        ('guided_filter', {'radius': 4})
    """
    match = _CALL.fullmatch(text.strip())
    if match is None:
        return text, {}
    try:
        call = ast.parse(f"f({match['options']})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(w.arg for w in call.keywords):
            raise ValueError("only option=value is read")
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{what} with arguments is written name(option=value, other=value) with numbers, "
            f"quoted text, True, False, None or lists for values; got {text!r}"
        ) from error
    return match["name"], options


def call_text(name: str, options: Mapping[str, Any]) -> str:
    """Write what :func:`read_call` reads; without options the name alone.

    Example:
        >>> from upfeat._settings import call_text
        >>> call_text("clip/ViT-B-16", {"last_block": "attention"})
        "clip/ViT-B-16(last_block='attention')"
    """
    written = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({written})" if written else name

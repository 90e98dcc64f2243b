"""YAML files and ``key=value`` overrides to a checked :class:`Config`, and back.

A file may name a parent, or a list of them, with ``base:`` (paths relative to the file); its own keys win, and a later
parent's those of an earlier one. Every error is one line that names the key, the value and the file it came from.
"""

import dataclasses
import difflib
import functools
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from src.config.checks import ConfigError, FieldError
from src.config.paths import PATH, is_shipped, read_text_setting, resolve
from src.config.root import Config

OVERRIDE = "command line"


Rename = typing.Callable[[dict[str, Any]], dict[str, Any]]


def load_config(path: str | Path | None, overrides: typing.Sequence[str] = (), rename: Rename | None = None) -> Config:
    """Reads a YAML file with its parents, applies ``key=value`` overrides, checks and returns the configuration.

    Args:
        path: the YAML file; None: the defaults.
        overrides: ``section.key=value`` strings; text is taken as it is, any other value read as YAML.
        rename: makes today's dotted keys and values of those that an earlier version wrote to the file.

    Raises:
        ConfigError: unknown key, wrong type, impossible combination, or a file that cannot be read.
    """
    values, origins = _flatten([] if path is None else _read(Path(path), ()))
    if rename is not None:
        values = rename(values)
        origins = {key: origins.get(key, str(path)) for key in values}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not key=value (command line)")
        values[key] = _read_override(key, text)
        origins[key] = OVERRIDE
    return _build(Config, values, origins)


def _read_override(key: str, text: str) -> Any:
    """The value of ``key=text``: the key's type says whether its text is the value or YAML."""
    kind = _keys(Config).get(key)
    if kind is str or typing.get_origin(kind) in (typing.Annotated, Literal):  # paths and words to choose from
        return read_text_setting(text)
    # a shell makes nothing of key='': empty text, not YAML's null
    return _parse_yaml(text, f"{key}={text} (command line)") if text else ""


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML text that :func:`load_config` reads back to an equal object."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _parse_yaml(text: str, where: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {where}: {str(error).splitlines()[0]}") from None


def _refuse_twice(node: yaml.Node, where: str, prefix: str = "") -> None:
    """Raises ConfigError for a key or section that stands twice: YAML would lose the first without a word."""
    lines: dict[str, int] = {}
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"{key} stands twice in {where} (lines {lines[key]} and {line}): make it one")
        lines[key] = line
        if name.value != "<<":  # what it merges may stand elsewhere, under its own keys
            _refuse_twice(value, where, f"{key}.")
    for place, item in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        _refuse_twice(item, where, f"{prefix.rstrip('.')}[{place}].")


def _read(path: Path, children: tuple[Path, ...]) -> list[tuple[Path, dict]]:
    """The file's mapping behind those of its parents, the root first."""
    if path.resolve() in children:
        raise ConfigError(f"base: of {path} leads back to the file itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config {path}: {getattr(error, 'strerror', None) or error}") from None
    mapping = _parse_yaml(text, str(path)) or {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold key: value pairs")
    bases = mapping.pop("base", None) or []
    parents: list[tuple[Path, dict]] = []
    for base in bases if isinstance(bases, list) else [bases]:
        parents += _read(path.parent / os.path.expanduser(str(base)), (*children, path.resolve()))
    return [*parents, (path, mapping)]


def _flatten(layers: list[tuple[Path, dict]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges the layers into dotted keys; the second dict says which file each key came from."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def visit(prefix: str, mapping: dict, path: Path, seen: set[str]) -> None:
        for name, value in mapping.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict):
                visit(f"{key}.", value, path, seen)
                continue
            if value is None and key in _sections():  # all that stood in it is commented out
                continue
            if key in seen:  # once with dots, once in a section
                raise ConfigError(f"{key} stands twice in {path}: make it one")
            seen.add(key)
            values[key], origins[key] = value, str(path)

    for path, mapping in layers:
        visit("", mapping, path, set())
    return values, origins


@functools.cache
def _keys(cls: type, prefix: str = "") -> typing.Mapping[str, Any]:
    """Every dotted key of a config class with its type."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        nested = dataclasses.is_dataclass(kind)
        found.update(_keys(kind, f"{prefix}{name}.") if nested else {f"{prefix}{name}": kind})
    return found


@functools.cache
def _sections() -> frozenset[str]:
    """Every section of the configuration, by its dotted name."""
    return frozenset(key[:at] for key in _keys(Config) for at, letter in enumerate(key) if letter == ".")


def _build(cls: type, values: dict[str, Any], origins: dict[str, str], prefix: str = "") -> Any:
    known = _keys(cls, prefix)
    for key, value in values.items():
        if key not in known:
            near = _nearest(key, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"unknown key {key}={value!r} in {origins[key]}{hint}")
        values[key] = _coerce(value, known[key], key, origins[key])
    return _assemble(cls, values, origins, prefix)


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    """The known key that shares most words with an unknown one, and of those the one spelt most alike; "" if none."""

    def likeness(other: str) -> tuple[int, float]:
        return len(_words(key) & _words(other)), difflib.SequenceMatcher(None, other, key).ratio()

    nearest = max(known, key=likeness)
    shared, ratio = likeness(nearest)
    last = _words(key.rpartition(".")[2]) & _words(nearest)
    if last or (shared and ratio >= 0.6):
        return nearest
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return alike[0] if alike else ""


def _words(key: str) -> set[str]:
    return set(re.split(r"[._]", key))


def _assemble(cls: type, values: dict[str, Any], origins: dict[str, str], prefix: str) -> Any:
    arguments = {}
    for name, kind in typing.get_type_hints(cls).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            arguments[name] = _assemble(kind, values, origins, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    try:
        return cls(**arguments)
    except FieldError as error:
        key = f"{prefix}{error.name}"
        shown = f"{key}={values[key]!r}" if key in values else key
        raise ConfigError(f"{shown} in {origins.get(key, 'the defaults')}: {error.message}") from None


def _coerce(value: Any, kind: Any, key: str, file: str) -> Any:
    """The value as ``kind``, or a ConfigError; an int passes as a float, ``1e-3`` (a YAML string) too."""
    where = f"{key}={value!r} in {file}"
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        # YAML's null is no path
        value = _coerce("" if value is None and PATH in kind.__metadata__ else value, kind.__origin__, key, file)
        return resolve(value, file != OVERRIDE and is_shipped(file)) if PATH in kind.__metadata__ else value
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{where}: must be one of {', '.join(map(str, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: must be a list")
        return _coerce_items(value, typing.get_args(kind)[0], key, file)
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is not None:
            if not math.isfinite(number):
                raise ConfigError(f"{where}: must be finite")
            return number
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: must be {_type_name(kind)}, not {type(value).__name__}")


def _coerce_items(items: typing.Sequence, kind: Any, key: str, file: str) -> tuple:
    """A list's items: values, or mappings whose keys are those of a dataclass, as in ``data.sources``."""
    if not dataclasses.is_dataclass(kind):
        return tuple(_coerce(item, kind, key, file) for item in items)
    built = []
    for place, item in enumerate(items):
        name = f"{key}[{place}]"
        if not isinstance(item, dict):
            fields = ", ".join(field.name for field in dataclasses.fields(kind))
            raise ConfigError(f"{name}={item!r} in {file}: must be a mapping of {fields}")
        values, origins = _flatten([(Path(file), {name: item})])
        built.append(_build(kind, values, origins, f"{name}."))
    return tuple(built)


def _type_name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return str(kind) if isinstance(kind, types.UnionType) else names[kind]

"""From plain configuration to frozen dataclasses; a dataclass's fields are the schema of its yaml."""

from __future__ import annotations

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from kvbench.configuration.errors import ConfigError, hint, near_misses

TARGET = "_target_"
_PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def build(node: object, kind: object, key: str, prefixes: Sequence[str]) -> Any:
    """Return the value a configuration node stands for.

    Args:
        node: plain containers and scalars.
        kind: the annotation it has to satisfy; `object` for any.
        key: full key of the node, for messages.
        prefixes: what a `_target_` may begin with.

    Raises:
        ConfigError: if keys or values are not what the annotation says.
    """
    if isinstance(node, Mapping) and TARGET in node:
        cls = _locate(node[TARGET], key, prefixes)
        _check_members(cls, kind, key)
        return _construct(cls, node, key, prefixes)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(node, get_args(kind), key, prefixes)
    if origin is Literal:
        return _choice(node, get_args(kind), key)
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](node, get_args(kind), key, prefixes)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](node, (), key, prefixes)
    if kind in _PLAIN:
        return _scalar(node, kind, key)
    if kind in (Any, object):
        return node
    if kind in (None, types.NoneType):
        return _nothing(node, key)
    if isinstance(node, Mapping) and dataclasses.is_dataclass(kind):
        return _construct(typing.cast(type, kind), node, key, prefixes)
    raise ConfigError(_not_a_group(node, key))


def _check_members(cls: type, kind: object, key: str) -> None:
    """Refuse a class that lacks what the protocol of its place asks for, before anything is measured with it."""
    lacks = _lacking(cls, kind) if getattr(kind, "_is_protocol", False) else []
    if lacks:
        has = {*dir(cls), *schema(cls)}
        where = f"{typing.cast(type, kind).__module__}.{typing.cast(type, kind).__name__}"
        near = [f"{guess} for {name}" for name in lacks for guess in near_misses(name, has)[:1]]
        raise ConfigError(
            f"{key}: {cls.__name__} lacks {', '.join(lacks)} of {where}. "
            + (f"It has {', '.join(near)}; is that what was meant?" if near else "Write it, or choose another class.")
        )


@cache
def _lacking(cls: type, kind: object) -> list[str]:
    has = {*dir(cls), *schema(cls)}
    return [name for name in dir(kind) if not name.startswith("_") and name not in has]


def _construct(cls: type, node: Mapping[Any, Any], key: str, prefixes: Sequence[str]) -> Any:
    kinds = schema(cls)
    given = {str(name): value for name, value in node.items() if name != TARGET}
    for name in given:
        if name not in kinds:
            known = hint(name, kinds, prefix=f"{key}.", label="It has")
            raise ConfigError(f"{key} ({cls.__name__}) has no setting {name!r}. {known}")
    missing = [name for name in kinds if name not in given]
    if missing:
        raise ConfigError(f"{key} ({cls.__name__}) lacks {', '.join(missing)}: its yaml has to give every setting.")
    values = {name: build(given[name], kind, f"{key}.{name}", prefixes) for name, kind in kinds.items()}
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        raise ConfigError(text if key in text else f"{key}: {text}") from error


@cache
def schema(cls: type) -> Mapping[str, Any]:
    """Return the annotation of every field of a dataclass that its yaml has to give."""
    kinds = typing.get_type_hints(cls)
    return {field.name: kinds[field.name] for field in dataclasses.fields(cls) if field.init}


def _locate(target: object, key: str, prefixes: Sequence[str]) -> type:
    where = f"{key}.{TARGET}={target}"
    if not any(str(target).startswith(prefix) for prefix in prefixes):
        allowed = ", ".join(prefix + "*" for prefix in prefixes)
        parts, packages = str(target).split("."), [prefix.rstrip(".") for prefix in prefixes]
        close = [one for one in packages if near_misses(".".join(parts[: one.count(".") + 1]), [one])]
        mend = f"Did you mean {' or '.join(close)}?" if close else "Add its package with plugins=[<package>]."
        raise ConfigError(f"{where} is not allowed; allowed are {allowed}. {mend}")
    module_name, _, name = str(target).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{where} cannot be imported: {error}") from error
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        found = [
            other
            for other, value in vars(module).items()
            if dataclasses.is_dataclass(value) and value.__module__ == module_name
        ]
        raise ConfigError(f"{where} is no dataclass of {module_name}. {hint(name, found)}")
    return cls


def _one_of(node: object, kinds: tuple[object, ...], key: str, prefixes: Sequence[str]) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return build(node, kind, key, prefixes)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; or ".join(reasons))


def _choice(node: object, choices: tuple[object, ...], key: str) -> object:
    for choice in choices:
        if node == choice and type(node) is type(choice):
            return choice
    raise ConfigError(f"{key} cannot be {_shown(node)}. {hint(str(node), map(str, choices))}")


def _scalar(node: object, kind: object, key: str) -> object:
    if kind is float and type(node) is int:
        return float(node)
    if type(node) is not kind:
        quote = f" Quote it: {key}='\"{node}\"'." if kind is str and isinstance(node, int | float) else ""
        raise ConfigError(f"{key} must be {_PLAIN[typing.cast(type, kind)]}; got {_shown(node)}.{quote}")
    return node


def _nothing(node: object, key: str) -> None:
    if node is not None:
        raise ConfigError(f"{key} must be null; got {_shown(node)}.")


def _sequence(node: object, kinds: tuple[object, ...], key: str, prefixes: Sequence[str]) -> tuple[object, ...]:
    if not isinstance(node, list | tuple):
        raise ConfigError(f"{key} must be a list such as [1,2]; got {_shown(node)}.")
    kind = kinds[0] if kinds else object
    return tuple(build(value, kind, f"{key}[{index}]", prefixes) for index, value in enumerate(node))


def _list(node: object, kinds: tuple[object, ...], key: str, prefixes: Sequence[str]) -> list[object]:
    return list(_sequence(node, kinds, key, prefixes))


def _mapping(node: object, kinds: tuple[object, ...], key: str, prefixes: Sequence[str]) -> dict[str, object]:
    if not isinstance(node, Mapping):
        raise ConfigError(_not_a_group(node, key))
    kind = kinds[1] if kinds else object
    return {str(name): build(value, kind, f"{key}.{name}", prefixes) for name, value in node.items()}


_CONTAINERS: dict[object, Callable[[object, tuple[object, ...], str, Sequence[str]], object]] = {
    tuple: _sequence,
    Sequence: _sequence,
    list: _list,
    dict: _mapping,
    Mapping: _mapping,
}


def _not_a_group(node: object, key: str) -> str:
    group = key.replace(".", "/")
    choose = f" To choose one write {group}={node}, with a slash." if isinstance(node, str) and "." in key else ""
    return f"{key} must be a group of settings; got {_shown(node)}.{choose}"


def _shown(node: object) -> str:
    return json.dumps(node, default=str)

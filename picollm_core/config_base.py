"""Frozen, validated configurations and their fingerprints.

Every configuration checks itself when it is built, refuses keys it does not know, and survives a round trip
through JSON. The fingerprint names a result by everything that determines it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

RESULTS_VERSION = 1
"""Raised whenever a change of the package changes what a configuration computes; part of every fingerprint."""


def _normalised(value: Any, hint: Any) -> Any:
    """Lists as tuples, any kind of number as Python's int or float: equal configurations have equal fingerprints."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        kinds = [part for part in parts if part is not type(None)]
        return value if value is None or len(kinds) > 1 else _normalised(value, kinds[0])
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_normalised(item, parts[0]) for item in value)
    if isinstance(value, bool):
        return value
    if hint is float and isinstance(value, Real):
        return float(value)
    return int(value) if hint is int and isinstance(value, Integral) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a normalised `value` has the annotated type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _check_type(owner: str, name: str, value: Any, hint: Any) -> None:
    """Raise ValueError when `value` is not of the type, or outside the Literal, that annotates field `name`."""
    if not _fits(value, hint):
        choices = ", ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else ""
        expected = f"choose one of {choices}" if choices else f"it must be of type {getattr(hint, '__name__', hint)}"
        raise ValueError(f"{owner}.{name} is {value!r}; {expected}")


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds; the one way a configuration refuses a value."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Config:
    """Base of all configurations: type and choice checks, JSON round trip, fingerprint."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is not ClassVar:
                object.__setattr__(self, name, _normalised(getattr(self, name), hint))
                _check_type(type(self).__name__, name, getattr(self, name), hint)
        self.validate()

    def validate(self) -> None:
        """Raise ValueError naming the offending values; overridden where a configuration has constraints."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, nested configurations included, the family first where there is one."""
        family = getattr(type(self), "family", None)
        start = {} if family is None else {"family": family}
        return start | {f.name: _to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict. Raises ValueError for unknown keys, naming them and the known ones."""
        cls._refuse_unknown(values)
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed and validated again. Unknown names raise ValueError."""
        self._refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str]) -> None:
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(names) - known)
        require(not unknown, f"{cls.__name__} has no {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")

    def fingerprint(self, **context: Any) -> str:
        """16 hex digits that name this configuration, `context` (such as a corpus hash) and RESULTS_VERSION.

        A field that stands at its default is left out, so a new field whose default is what was done before leaves
        older results valid; changing a default therefore means raising RESULTS_VERSION, and a test holds them.
        """
        content = {"config": _chosen(self), "context": context, "version": RESULTS_VERSION}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _chosen(config: Config) -> dict[str, Any]:
    """What `config` says beyond its defaults, in plain JSON types; the family and nested configurations always."""
    chosen: dict[str, Any] = {"family": family} if (family := getattr(type(config), "family", None)) else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            chosen[field.name] = _chosen(value)
        elif field.default is dataclasses.MISSING or value != field.default:
            chosen[field.name] = _to_plain(value)
    return chosen


def _to_plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value

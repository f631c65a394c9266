"""A typed config is the command line: tyro reads it, and this module arranges its help."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from docstring_parser import parse_from_object

Config = TypeVar("Config")

Groups = Mapping[str, Sequence[str]]

MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


def parse(
    config: type[Config],
    prog: str,
    arguments: Sequence[str] | None = None,
    groups: Groups | None = None,
    hints: Mapping[str, str] | None = None,
) -> Config:
    """Read `arguments`, or those of the process, into a dataclass, whose docstrings are the help.

    A nested dataclass is a group of options without a prefix. `groups` puts further options under a heading of their
    own, such as `{"mosa and mosl": ["experts", "share"]}`. `hints` says what applies where an option is left out and
    the dataclass holds None or nothing; without a hint the help names no default.

    Raises:
        SystemExit: after the help, or with code 2 after a usage error.
    """
    outline = _outline(config, groups or {}, hints or {})
    found = tyro.cli(outline, prog=prog, args=None if arguments is None else list(arguments), config=MARKERS)
    return build(config, _flat(found))


def options_of(config: type[Any]) -> dict[str, Any]:
    """Name -> type of every option of a dataclass, those of its groups included."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        found |= options_of(kind) if nested else {name: kind}
    return found


def build(config: type[Config], options: Mapping[str, Any]) -> Config:
    """The config with some options, those of its groups by their own names; all others have their defaults."""
    given: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        given |= {name: build(kind, options)} if nested else {name: options[name]} if name in options else {}
    return config(**given)


def changed(config: Any) -> dict[str, Any]:
    """Name -> value of every option that is not its default, those of groups included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, make = getattr(config, field.name), field.default_factory
        if dataclasses.is_dataclass(value):
            found |= changed(value)
        elif value != (field.default if make is dataclasses.MISSING else make()):
            found[field.name] = value
    return found


def arguments_of(config: Any) -> list[str]:
    """The command line that `parse` reads into an equal config."""
    words = []
    for name, value in changed(config).items():
        values = value if isinstance(value, tuple | list) else () if value is True else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _outline(config: type[Any], groups: Groups, hints: Mapping[str, str]) -> type[Any]:
    """A dataclass with the options of `config`, in which those of a group are nested."""
    documents = {entry.arg_name: entry.description or "" for entry in parse_from_object(config).params}
    kinds = get_type_hints(config, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(config)}

    def option(name: str) -> tuple[str, Any, Any]:
        kind, field = kinds[name], fields[name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return _group(name, name, _outline(kind, {}, hints))
        # None leaves the help to the field's own annotation, which may name what a constant lists.
        text = " ".join(documents.get(name, "").split()) or None
        if field.default is None or field.default == ():
            hint = f"({hints[name]})" if name in hints else ""
            described = tyro.conf.arg(prefix_name=False, help=text, help_behavior_hint=hint)
        else:
            described = tyro.conf.arg(prefix_name=False, help=text)
        same = dataclasses.field(default=field.default, default_factory=field.default_factory)
        return name, Annotated[kind, described], same

    grouped = {name for names in groups.values() for name in names}
    options = [option(name) for name in fields if name not in grouped]
    for i, (title, names) in enumerate(groups.items()):
        nested = dataclasses.make_dataclass(config.__name__, [option(name) for name in names], kw_only=True)
        options.append(_group(f"group_{i}", title, nested))
    made = dataclasses.make_dataclass(config.__name__, options, kw_only=True)
    made.__doc__ = config.__doc__
    return made


def _group(name: str, title: str, outline: type[Any]) -> tuple[str, Any, Any]:
    return name, Annotated[outline, tyro.conf.arg(name=title)], dataclasses.field(default_factory=outline)


def _flat(found: Any) -> dict[str, Any]:
    """Every option by name, out of all groups."""
    values: dict[str, Any] = {}
    for name, value in vars(found).items():
        values |= _flat(value) if dataclasses.is_dataclass(value) else {name: value}
    return values

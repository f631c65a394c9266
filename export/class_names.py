"""The class names of a converted head: given, found beside the source, the folders of its images, or numbered."""

import re
from pathlib import Path

import yaml

from export.facts import Fact, Facts
from export.ordered_names import ordered
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.text import decode_text, read_json

Names = tuple[str, ...]

YAML = (".yaml", ".yml")

FILES = (".txt", ".json", ".csv", ".names", *YAML)
"""How the name of a file of class names ends."""

NUMBERED = re.compile(r"\s*(\d+)[\s,;:]")
"""A line that begins with a number."""

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody named."""


def class_names(
    given: str | None, facts: Facts, folders: Names, count: int, path: Path, natural: bool = False
) -> Fact[Names]:
    """The class names in the order of the head's `count` outputs.

    They are `given`, else what files say, else the `folders` of the images, else class0, class1 and so on. With
    `natural`, the source's own library may have sorted folders by the numbers in their names.

    Raises:
        ConfigError: the number of names is not `count`, a name is empty or repeated, two files contradict each other,
            the order of the folders is not certain, or there is a single output.
    """
    if count < 2 and facts.multi_label is None:
        raise ConfigError(
            f"the head in {path} has {count} output, as for regression or a sigmoid: classification needs at least two,"
            " or --multi-label if it is a label that an image has or has not"
        )
    if given is not None:
        return Fact(_checked(_read_names(given), count, f"--classes {given}"), f"--classes {given}")
    own = [Fact(_checked(fact.value, count, fact.where), fact.where) for fact in facts.names if _is_named(fact)]
    fitting = [fact for fact in facts.entry_names if len(fact.value) == count]
    named = own + [fact for fact in fitting + facts.base_names if _is_named(fact) and len(fact.value) == count]
    facts.notes += [
        f"{fact.where} names {len(fact.value)} classes, the head has {count} outputs: they are not taken"
        for fact in facts.entry_names
        if fact not in fitting
    ]
    for other in named[1:]:
        if other.value != named[0].value:
            raise ConfigError(f"{named[0].where} and {other.where} name other classes: choose with --classes")
    if named:
        return Fact(_checked(named[0].value, count, named[0].where), named[0].where)
    if len(folders) == count:
        if facts.class_map is not None:
            raise ConfigError(f"the classes were ordered by {facts.class_map}, not by folders: give it as --classes")
        if natural and sorted(folders, key=_natural) != sorted(folders):
            raise ConfigError(
                "--images: timm sorts class folders by the numbers in their names, torchvision does not, so their order"
                f" is not certain ({', '.join(sorted(folders)[:3])}, ...): give --classes"
            )
        return Fact(folders, "the folders of --images, sorted")
    numbered = tuple(f"class{i}" for i in range(count))
    return Fact(numbered, "no file: they are numbered, give --classes to name them", known=False)


def _is_named(fact: Fact[Names]) -> bool:
    return not all(PLACEHOLDER.fullmatch(name) for name in fact.value)


def _checked(names: Names, count: int, where: str) -> Names:
    faults = [] if len(names) == count else [f"{len(names)} names for the head's {count} outputs"]
    faults += [] if all(names) else ["an empty name"]
    faults += [f"'{name}' twice" for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if faults:
        raise ConfigError(f"{where}: {'; '.join(faults)}; give --classes with one name for each output")
    return names


def _read_names(given: str) -> Names:
    """From a list with commas, a file with one name per line, or a JSON file: a list, or numbers and names."""
    # A long list is not a file name: `is_file` would fail on it.
    path = Path(given)
    if "," in given:
        return tuple(name.strip() for name in given.split(","))
    if not path.is_file():
        if path.suffix in FILES:
            raise ConfigError(f"--classes {given}: no such file; give names with commas between them, or a file")
        return (given.strip(),)
    if path.suffix in (".json", *YAML):
        kind = "JSON" if path.suffix == ".json" else "YAML"
        try:
            return ordered(read_json(path) if kind == "JSON" else _read_yaml(path))
        except (ValueError, yaml.YAMLError) as error:
            said = str(error).partition("\n")[0]
            raise ConfigError(
                f"--classes {given} is neither a {kind} list of names nor an object of numbers and names: {said}"
            ) from None
    return _of_lines(decode_text(path.read_bytes()).rstrip("\n").split("\n"), given)


def _read_yaml(path: Path) -> object:
    # Without types: a class called `no` would be False.
    return yaml.load(decode_text(path.read_bytes()), Loader=yaml.BaseLoader)


def _of_lines(lines: list[str], given: str) -> Names:
    """One name per line. Where every line begins with its number, their order is that of the numbers already.

    These numbers are no part of the names, unless the names would not differ without them.
    """
    numbers = [int(found[1]) for line in lines if (found := NUMBERED.match(line))]
    if sorted(numbers) == list(range(len(lines))) != numbers:
        raise ConfigError(f"--classes {given}: its lines are numbered, but not in that order: sort them")
    plain = tuple(line.strip() for line in lines)
    named = tuple(NUMBERED.sub("", line, count=1).strip() for line in lines)
    return named if numbers == list(range(len(lines))) and len({*named}) == len(lines) else plain


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name.lower())]

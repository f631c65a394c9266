"""The class names of a converted head: given, found beside the source, the folders of its images, or numbered."""

import re
from collections.abc import Iterator
from pathlib import Path

from export.facts import Fact, Facts
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.text import decode_text, read_json

Names = tuple[str, ...]

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
    if count < 2:
        raise ConfigError(
            f"the head in {path} has {count} output, as for regression or a sigmoid: classification needs at least two"
        )
    if given is not None:
        return Fact(_checked(_read_names(given), count, f"--classes {given}"), f"--classes {given}")
    own = [Fact(_checked(fact.value, count, fact.where), fact.where) for fact in facts.names if _is_named(fact)]
    named = own + [fact for fact in facts.base_names if _is_named(fact) and len(fact.value) == count]
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
    if "," in given or not path.is_file():
        return tuple(line.strip() for line in given.split(","))
    if path.suffix != ".json":
        return tuple(line.strip() for line in decode_text(path.read_bytes()).rstrip("\n").split("\n"))
    try:
        return tuple(_of_json(read_json(path)))
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"--classes {given} is neither a JSON list of names nor an object of numbers and names"
        ) from None


def _of_json(content: object) -> Iterator[str]:
    if isinstance(content, list):
        yield from map(str, content)
        return
    if not isinstance(content, dict):
        raise TypeError
    # `id2label` of transformers, or `class_to_idx` of torchvision.
    numbered = content if all(str(key).isdecimal() for key in content) else {v: k for k, v in content.items()}
    by_number = {int(key): name for key, name in numbered.items()}
    yield from (str(by_number[i]) for i in range(len(content)))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name.lower())]

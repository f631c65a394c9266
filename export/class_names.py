"""The class names of a converted head: given, read from a `config.json` of transformers, or numbered."""

from pathlib import Path

from mosa_deploy.backbones.transformers import CONFIG_FILE, read_config
from mosa_deploy.errors import ConfigError


def class_names(given: str | None, path: Path, count: int, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The class names in the order of the head's `count` outputs.

    They are `given`, else `known` from the source itself, else read from the `config.json` at `path`, else class0,
    class1 and so on.

    Raises:
        ConfigError: the number of names is not `count`, a name is empty or repeated, or there is a single output.
        BackboneError: the `config.json` is damaged.
    """
    if count < 2:
        raise ConfigError(f"the head in {path} has {count} output: classification needs at least two")
    if given is not None:
        names, where = _read_names(given)
    else:
        names, where = (known, f"classes_ in {path}") if known else _known_names(path)
    if not names:
        return tuple(f"class{i}" for i in range(count))
    faults = [] if len(names) == count else [f"{len(names)} names for the head's {count} outputs"]
    faults += [] if all(names) else ["an empty name"]
    faults += [f"'{name}' twice" for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if faults:
        raise ConfigError(f"{where}: {'; '.join(faults)}; give --classes with one name for each output")
    return names


def _read_names(given: str) -> tuple[tuple[str, ...], str]:
    """(names, where they come from), from a file with one name per line or a list with commas."""
    # A long list is not a file name: `is_file` would fail on it.
    is_file = "," not in given and Path(given).is_file()
    lines = Path(given).read_text().rstrip("\n").split("\n") if is_file else given.split(",")
    return tuple(line.strip() for line in lines), f"--classes {given}"


def _known_names(path: Path) -> tuple[tuple[str, ...], str]:
    """(names, where they come from), from `id2label` in the order of its numbers."""
    folder = path if path.is_dir() else path.parent
    labels = read_config(folder).get("id2label")
    if not isinstance(labels, dict) or not all(str(key).isdecimal() for key in labels):
        labels = {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int)), f"id2label in {folder / CONFIG_FILE}"

"""Which folders are sets: `train`, `validation` and `test`, by whatever name people give them."""

from collections import defaultdict
from collections.abc import Mapping

from mosa_deploy.errors import DataError
from mosa_deploy.utils.set_names import read_set_name, says_nothing, set_of
from training.tasks.source import Source, shown

SETS = ("train", "validation", "test")


def set_folders(source: Source) -> dict[str, str]:
    """Set -> its top folder, in the order of train, validation and test; empty if the top folders are classes.

    Raises:
        DataError: two folders are the same set, such as `val` and `valid`, or one folder looks like a set and another
            like a class.
    """
    found: dict[str, str] = {}
    for top, name in _named(source).items():
        if name in found:
            raise DataError(
                f"{source.name}/{found[name]} and {source.name}/{top} both are {name}: join them, or keep one"
            )
        found[name] = top
    if len(found) == 1:
        _check_alone(source, *found.values())
    return {name: found[name] for name in SETS if name in found}


def set_source(source: Source, top: str) -> Source:
    """The class folders of a set, without a folder around them: `train/train/<class>`, `train/images/<class>`."""
    inner = source.below(top)
    tops = inner.tops()
    if len(tops) != 1 or inner.loose() or not (read_set_name(tops[0]) or says_nothing(tops[0])):
        return inner
    innermost = inner.below(tops[0])
    return innermost if innermost.folders else inner


def beside_sets(source: Source, folders: Mapping[str, str]) -> str | None:
    """The remark about images that lie in none of the sets."""
    lost = sorted(parts for parts in source.images if len(parts) == 1 or parts[0] not in folders.values())
    if not lost:
        return None
    return f"left out: {len(lost):,} image(s) of {source.name} in none of its sets, such as {shown(lost[0])!r}"


def _named(source: Source) -> dict[str, str]:
    """Top folder -> set.

    Raises:
        DataError: there are several kinds of sets, such as `a_train` with `a_test` and `b_train` with `b_test`.
    """
    tops = source.tops()
    if tops and all(map(set_of, tops)):
        return {top: name for top in tops if (name := set_of(top))}
    # A folder `train` that holds images and lies beside other folders is a class, e.g. of railway trains.
    nested = sorted({parts[0] for parts in source.folders if len(parts) > 1})
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for top in nested:
        spoken = read_set_name(top)
        if spoken:
            alike[spoken.rest][top] = spoken.name
    # `seg_train` and `seg_test` are sets, `steam train` and `crash test` are not: sets differ in one word.
    plain = alike.pop("", {})
    if plain:
        return plain
    several = [named for named in alike.values() if len(set(named.values())) > 1]
    if len(several) > 1:
        first, second, *_ = (next(iter(named)) for named in several)
        raise DataError(f"{source.name} holds sets of several kinds, such as {first!r} and {second!r}: keep one kind")
    return several[0] if several else {}


def _check_alone(source: Source, top: str) -> None:
    """Raises DataError if the only set lies beside other folders of folders with images."""
    deep = sorted({parts[0] for parts in source.images if len(parts) > 2} - {top})
    if deep:
        raise DataError(
            f"{source.name} holds {top!r}, which looks like a set, beside {deep[0]!r}: name the sets train, validation"
            " and test, or rename the class"
        )

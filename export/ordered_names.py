"""Class names in the order of a head's outputs, from the lists and dictionaries in which people keep them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mosa_deploy.utils.text import decode_text

KEYS = (
    "id2label",
    "label2id",
    "idx_to_class",
    "class_to_idx",
    "label_names",
    "class_names",
    "classes",
    "vocab",
    "names",
)
"""What people call them, in a file or in a checkpoint."""


def ordered(content: object) -> tuple[str, ...]:
    """From a list of names, `id2label` of transformers, `class_to_idx` of torchvision, or an object that holds one.

    Raises:
        ValueError: it is none of these, or its numbers do not count from 0 without a gap.
    """
    content = _plain(content)
    if isinstance(content, Mapping):
        inner = next((content[key] for key in KEYS if isinstance(content.get(key), list | tuple | Mapping)), None)
        content = _by_number(content) if inner is None else _plain(inner)
    if isinstance(content, Mapping):
        content = _by_number(content)
    if isinstance(content, set | frozenset):
        raise ValueError("it has no order")
    if not isinstance(content, list | tuple) or not all(isinstance(name, str | int | bytes) for name in content):
        raise ValueError("it holds no names")
    return tuple(decode_text(name) if isinstance(name, bytes) else str(name) for name in content)


def _plain(content: Any) -> object:
    return content.tolist() if isinstance(content, np.ndarray) else content


def _by_number(content: Mapping[object, object]) -> list[object]:
    """The names by their numbers, which are whole numbers if they are values, since names may be digits too."""
    numbers = all(isinstance(value, int) for value in content.values())
    pairs = {value: key for key, value in content.items()} if numbers else content
    try:
        names = {int(str(number)): name for number, name in pairs.items()}
        return [names[i] for i in range(len(content))]
    except (KeyError, ValueError):
        raise ValueError("its numbers do not count from 0 without a gap") from None

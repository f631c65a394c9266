"""Names of sets as people write them: Train, training, TRAIN_SET, val, valid, dev, Testing, test-images, seg_test."""

import re
from typing import NamedTuple

WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": (
        *("validation", "validate", "validating", "valid", "val", "vali"),
        *("dev", "devel", "development", "eval", "evaluation", "evaluate"),
    ),
    "test": ("test", "tests", "testing", "tst", "holdout", "heldout"),
}
"""Set -> the words that name it."""

FILLERS = "sets?|splits?|subsets?|images?|imgs?|data|datasets?|photos?|pictures?|pics?|files?|folders?|dirs?|samples?"
"""Words beside it that say nothing more."""

NAMED = {word: name for name, words in WORDS.items() for word in words}
TOKEN = re.compile(rf"(?:{FILLERS})*?({'|'.join(sorted(NAMED, key=len, reverse=True))})(?:{FILLERS})*")


class SetName(NamedTuple):
    """The set that a name speaks of, and what else the name says."""

    name: str
    rest: str


def read_set_name(text: str) -> SetName | None:
    """Which set a name speaks of: `seg_train` -> train, and `seg` besides; None if it names none, or train and test.

    Case, digits and what stands between words do not matter.
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    found, rest = [], []
    for token in re.findall(r"[^\W\d_]+", parted.lower()):
        match = TOKEN.fullmatch(token)
        if match:
            found.append(NAMED[match[1]])
        elif not re.fullmatch(FILLERS, token):
            rest.append(token)
    # What is both, such as `trainval`, is there to be trained on.
    said = "train" if {*found} == {"train", "validation"} else found[0] if len({*found}) == 1 else None
    return SetName(said, " ".join(rest)) if said else None


def set_of(text: str) -> str | None:
    """The set that a name speaks of, and of nothing else; None for any other name."""
    found = read_set_name(text)
    return found.name if found and not found.rest else None


def says_nothing(text: str) -> bool:
    """Whether a name has only words like `images`, which say nothing of what is inside."""
    return bool(re.fullmatch(rf"(?:(?:{FILLERS})[\W\d_]*)+", text.lower()))

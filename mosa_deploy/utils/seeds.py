"""All randomness of a run derives from its seed and the name of a use, never from what ran before it."""

import hashlib


def derive(seed: int, *use: str | int) -> int:
    """A 63-bit seed for one use, e.g. `derive(seed, "expert", epoch, layer)`; different uses are independent."""
    digest = hashlib.sha256(repr((seed, *use)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

"""What an image is labelled with: the number of its class, or the numbers of its labels where it may have several."""

Label = int | tuple[int, ...]


def numbers(label: Label) -> tuple[int, ...]:
    """The classes that an image belongs to."""
    return (label,) if isinstance(label, int) else label

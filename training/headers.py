"""What the files of a data set say before they become 8-bit pixels: size, bit depth, frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mosa_deploy.bundles.decode import WHITE_16, Decode, open_image
from mosa_deploy.bundles.image_size import size_fault
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError

DARK = 1 / 4
"""16-bit colours that stay below this share of white come from fewer bits, and Pillow cuts off the lower eight."""

MIXED = 0.1
"""The share of images that must be dark beside bright ones before different bit depths are suspected."""


@dataclass
class Headers:
    """What is known of the images so far."""

    grey: list[int] = field(default_factory=list)
    """The largest value of each image of 16-bit grey."""
    colour: list[int] = field(default_factory=list)
    """The largest value of each image of 16-bit colour, after Pillow has cut it to its upper 8 bits."""
    frames: list[str] = field(default_factory=list)
    """The names of files with more than one frame or page."""

    def look(self, content: bytes, name: str, preprocess: Preprocess, max_pixels: int) -> None:
        """Look at one image. What cannot be opened is left to the decoder, which says why.

        Raises:
            DataError: it has more than `max_pixels`, or would have when it is resized.
        """
        try:
            image = open_image(content)
        except Exception:  # On damaged bytes Pillow raises errors of many kinds.
            return
        with image:
            fault = size_fault(image.size, preprocess, max_pixels)
            if fault is not None:
                raise DataError(f"{fault}: crop it, make it smaller, or raise --max-pixels")
            if image.format != "MPO" and getattr(image, "is_animated", False):
                self.frames.append(name)
            try:
                self._depth(image)
            except Exception:
                return

    def add(self, other: "Headers") -> None:
        """Add what is known of further images."""
        self.grey += other.grey
        self.colour += other.colour
        self.frames += other.frames

    def _depth(self, image: Image.Image) -> None:
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() >= 0 and values.max() <= WHITE_16:  # The decoder refuses others, and says so.
                self.grey.append(int(values.max()))
        elif any(";16" in str(tile.args) for tile in getattr(image, "tile", ())):
            self.colour.append(int(np.asarray(image.convert("RGB")).max()))

    def remarks(self, decode: Decode) -> list[str]:
        """What the user should know, one line each.

        Raises:
            DataError: images of 16-bit colour would be almost black, and Pillow cannot read them otherwise.
        """
        found = [*self._grey_remarks(decode), *self._colour_remarks()]
        if self.frames:
            first = self.frames[0] + (", ..." if len(self.frames) > 1 else "")
            found.append(f"several frames or pages in {images(self.frames)}, of which the first is used: {first}")
        return found

    def _grey_remarks(self, decode: Decode) -> list[str]:
        white = decode.white
        if not self.grey:
            unused = f"warning: a white level of {white} changes nothing: no image holds 16-bit grey"
            return [unused] if white != WHITE_16 else []
        count, largest = f"16-bit grey in {images(self.grey)}", max(self.grey)
        if decode.grey16 == "pillow":
            return [f"warning: {count}: this task cuts it off at 255, as the library does that it comes from"]
        if largest > white:
            above = sum(value > white for value in self.grey)
            return [
                f"warning: {count}, {above} of them with values above the white level {white}, up to {largest}: these"
                f" become white; tune with --white-level {level(largest)} to keep them apart"
            ]
        if largest <= white // 2:
            return [
                f"warning: {count}, with values up to {largest} where {white} is white: they look almost black; tune"
                f" with --white-level {level(largest)}, which the bundle keeps"
            ]
        dark = [value for value in self.grey if value <= white // 8]
        if len(dark) >= MIXED * len(self.grey):
            return [
                f"warning: {count}, {len(dark)} of them with values up to {max(dark)} and the others up to {largest}:"
                " different bit depths look differently bright; give all of them the same depth"
            ]
        return []

    def _colour_remarks(self) -> list[str]:
        if not self.colour:
            return []
        count, largest = f"16-bit colour in {images(self.colour)}", max(self.colour)
        if largest <= 255 * DARK:
            raise DataError(
                f"{count}, of which Pillow reads the upper 8 bits alone, and these reach {largest} of 255: they would"
                " be almost black; convert the files to 8 bits per channel, scaled to their own white"
            )
        return [f"{count}, of which the upper 8 bits are used"]


def images(found: Sequence[object]) -> str:
    """`1 image`, `2 images`."""
    return f"{len(found)} image{'' if len(found) == 1 else 's'}"


def level(largest: int) -> int:
    """The largest value of as many bits as `largest` needs: 4000 -> 4095."""
    return max(1, (1 << largest.bit_length()) - 1)

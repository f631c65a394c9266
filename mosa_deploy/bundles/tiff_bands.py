"""A TIFF may hold more bands than a photo. Pillow drops them or takes one for alpha, so such a file is refused."""

import io

from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2

from mosa_deploy.errors import DataError

PHOTOMETRIC, BANDS, EXTRA = 262, 277, 338

COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Photometric interpretation -> its number of bands: grey, RGB, palette, CMYK, YCbCr, Lab."""

ALPHA = (1, 2, 999)
"""The values of ExtraSamples that mean alpha; 999 is Corel's."""


def check_bands(content: bytes) -> None:
    """Check that a TIFF has the bands of a photo, with alpha or without; other files pass.

    Raises:
        DataError: it has more, such as a multispectral image.
    """
    if not content.startswith(tuple(PREFIXES)):
        return
    tags = ImageFileDirectory_v2(content[: 16 if content[2] == 43 else 8])
    stream = io.BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    bands, known = int(tags.get(BANDS, 1)), COLOURS.get(tags.get(PHOTOMETRIC, 0))
    alpha = tags.get(EXTRA, ())[:1]
    if known is None or bands <= known or (bands == known + 1 and alpha and alpha[0] in ALPHA):
        return
    raise DataError(
        f"a TIFF of {bands} bands, {bands - known} more than its colours need, and these are not alpha (ExtraSamples):"
        " save the three bands that the task shall see as RGB"
    )

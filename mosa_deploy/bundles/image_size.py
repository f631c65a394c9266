"""Images that would take too much memory are told by their size, before anything is decoded."""

from mosa_deploy.bundles.preprocess import Preprocess


def size_fault(size: tuple[int, int], preprocess: Preprocess, max_pixels: int) -> str | None:
    """Why an image of (W, H) is too large, as it is or resized to the input's shorter side; None if it fits."""
    width, height = size
    if width * height > max_pixels:
        return f"{width} x {height} pixels are more than {max_pixels}"
    target = max(preprocess.size) / preprocess.crop_pct
    if preprocess.resize == "center" and target**2 * max(size) / max(1, min(size)) > max_pixels:
        return f"{width} x {height} pixels are too narrow"
    return None

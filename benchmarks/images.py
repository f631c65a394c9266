"""The size of each container image's environment, and its known vulnerabilities. `python -m benchmarks.images`.

No container builder is needed: the install step of each Dockerfile is carried out on this machine, and what it makes is
what the image has beside its base. pip-audit asks a database of vulnerabilities; where that cannot be reached, the
report says so. It takes a few minutes, most of them for the CUDA image.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import tyro

from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from tests.support.dockerfile import DOCKERFILES, Dockerfile

AUDIT = "pip-audit==2.10.1"
OWN = "mosa-deploy"
"""Not on any index."""

LARGEST = 6
SECONDS = 600


@dataclass(frozen=True)
class Config:
    """Measure the images."""

    out: Path = Path("benchmarks/results/images.md")
    """The report to write."""


@dataclass(frozen=True)
class Image:
    """The environment of an image."""

    name: str
    total: int
    """Bytes of all files."""
    packages: dict[str, int]
    """Package and version -> bytes, the largest first."""
    vulnerabilities: list[str] | None
    """Package, version and identifiers of each; None if the database could not be asked."""


def measure(name: str) -> Image:
    """Make the environment of a Dockerfile for a while."""
    with tempfile.TemporaryDirectory(prefix="mosa-image-") as folder, tempfile.TemporaryDirectory() as scratch:
        place = Path(folder) / "mosa"
        Dockerfile.read(name).install(place, Path(scratch))
        (site,) = place.glob("lib/*/site-packages")
        found = {f"{each.name} {each.version}": size(each) for each in distributions(path=[str(site)])}
        packages = dict(sorted(found.items(), key=lambda pair: -pair[1]))
        return Image(name, sum(bytes_below(place)), packages, audit(site))


def size(package: Distribution) -> int:
    """Bytes of a package's files."""
    paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def bytes_below(folder: Path) -> Iterator[int]:
    """Sizes of the files of a folder; a link is none of its own."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.stat().st_size


def audit(site: Path) -> list[str] | None:
    """The known vulnerabilities of the packages in a folder; None if that cannot be found out here."""
    tool = [sys.executable, "-m", "uv", "tool", "run", "--from", AUDIT, "pip-audit"]
    line = [*tool, "--path", str(site), "--format=json", "--progress-spinner=off", "--timeout=15"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        return None
    # pip-audit skips, and calls clean, what the index at hand tells it nothing of.
    if any("vulns" not in each for each in answers if each["name"] != OWN):
        return None
    return [
        f"{each['name']} {each['version']}: {', '.join(fault['id'] for fault in each['vulns'])}"
        for each in answers
        if each.get("vulns")
    ]


def report(images: list[Image]) -> str:
    """The tables of what was measured."""
    rows = [(f"`{each.name}`", f"{each.total / 1e6:,.0f}", len(each.packages), told(each)) for each in images]
    parts = [
        "# The images",
        provenance("benchmarks.images"),
        "The environments that the Dockerfiles make, without their base image, which was not fetched.",
        table(("file", "MB", "packages", "known vulnerabilities"), rows, "lrrl"),
    ]
    for image in images:
        largest = [(name, f"{count / 1e6:,.0f}") for name, count in [*image.packages.items()][:LARGEST]]
        parts += [f"The largest packages of `{image.name}`:", table(("package", "MB"), largest, "lr")]
    return "\n\n".join(parts)


def told(image: Image) -> str:
    """What pip-audit found."""
    if image.vulnerabilities is None:
        return f"not measured: the database of {AUDIT} cannot be reached"
    return "; ".join(image.vulnerabilities) or f"none by {AUDIT}"


@command
def main() -> None:
    """Measure, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.images")
    text = report([measure(name) for name in DOCKERFILES])
    write_text(config.out, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()

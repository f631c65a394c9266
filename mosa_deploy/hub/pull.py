"""Fetch a bundle: `mosa pull OWNER/digits --out runs/digits`.

Only the files of a bundle are read, by their names, so nothing of the remote decides where anything is written. They
are checked as an upload is before the folder is made.
"""

from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.archive import RECORD_LIMIT, Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.gate import unpack_images
from mosa_deploy.bundles.record import RECORD, TENSORS
from mosa_deploy.bundles.store_layout import VALIDATION
from mosa_deploy.bundles.validation import BUDGET, PREFIX
from mosa_deploy.errors import BundleError, ConfigError, HubError, listed
from mosa_deploy.hub.address import open_remote
from mosa_deploy.hub.remote import BUNDLE_FILES, CARD, Contents, Remote
from mosa_deploy.utils.files import replacing_folder

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class PullConfig:
    """What `mosa pull` is asked for."""

    repo: str
    revision: str | None
    out: Path | None
    """None is `runs/NAME`."""
    max_size: int
    """In megabytes."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a size that cannot be."""
        if self.max_size < 1:
            raise ConfigError(f"--max-size {self.max_size}: at least 1")


def pull(config: PullConfig) -> Path:
    """Fetch and check a bundle, write it into a new folder, print what it is, and return the folder.

    Raises:
        ConfigError: the folder is there already, or the address means nothing.
        HubError: there is no such remote, or it cannot be reached.
        BundleError: what lies there is no bundle, is too large, damaged or altered.
    """
    remote = open_remote(config.repo, config.revision)
    out = config.out or Path("runs", Path(remote.name).name)
    return pull_from(remote, out, config.max_size * MEGABYTE)


def pull_from(remote: Remote, out: Path, limit: int) -> Path:
    """The same for a remote that is open."""
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another --out, or remove it")
    contents = remote.contents()
    check_contents(remote, contents, limit)
    files = {name: remote.read(contents, name) for name in BUNDLE_FILES if name in contents.sizes}
    # What a listing says of sizes is only a promise.
    check_contents(remote, Contents({name: len(content) for name, content in files.items()}), limit)
    bundle = checked(remote, files)
    with replacing_folder(out) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
    print(described(bundle, remote, contents, out))
    return out


def check_contents(remote: Remote, contents: Contents, limit: int) -> None:
    """Raises HubError if what a listing names is no bundle, or larger than it may be; no file is read."""
    sizes = contents.sizes
    missing = [name for name in (RECORD, TENSORS) if name not in sizes]
    if missing:
        held = listed(sorted(sizes)) or "nothing"
        raise HubError(f"{remote.name} is no bundle: it has no {' and no '.join(missing)}; it holds {held}")
    for name, most in ((RECORD, RECORD_LIMIT), (VALIDATION, 2 * BUDGET)):
        if sizes.get(name, 0) > most:
            raise HubError(f"{remote.name}: {name} has {sizes[name]} bytes; at most {most} are allowed")
    if sizes[TENSORS] > limit:
        raise HubError(
            f"{remote.name}: {TENSORS} has {sizes[TENSORS] / MEGABYTE:.1f} MB; --max-size allows {limit // MEGABYTE}"
        )


def checked(remote: Remote, files: dict[str, bytes]) -> Bundle:
    """The bundle of these files.

    Raises:
        BundleError: they are damaged or altered, or do not fit each other.
    """
    try:
        images = unpack_images(files[VALIDATION], PREFIX) if VALIDATION in files else ()
        return Archive(files[RECORD], files[TENSORS], validation=images).bundle()
    except (BundleError, ValueError) as error:
        raise BundleError(f"{remote.name}: {error}") from None


def described(bundle: Bundle, remote: Remote, contents: Contents, out: Path) -> str:
    """What was fetched, what was left behind, and what comes next."""
    record, at = bundle.record, f", commit {contents.commit[:12]}" if contents.commit else ""
    lines = [
        f"{out}: bundle {bundle.digest[:12]} of {record.task}, {len(record.classes)} classes, {record.method} on"
        f" {record.backbone.name}, from {remote.name}{at}"
    ]
    left = sorted(contents.sizes.keys() - {*BUNDLE_FILES, CARD, ".gitattributes"})
    if left:
        lines.append(f"not fetched: {listed(left)}")
    lines.append(f"next: mosa export --bundle {out}, or mosa deploy {out}")
    return "\n".join(lines)

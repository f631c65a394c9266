"""The Dockerfiles as data, and their install step in an environment of this machine: no container builder is needed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.walker import ROOT

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
PLACE = "/opt/mosa"
"""Where the images have their environment."""

SECONDS = 1800


@dataclass(frozen=True)
class Instruction:
    """One instruction, such as RUN, with its arguments in one line."""

    kind: str
    text: str


@dataclass(frozen=True)
class Dockerfile:
    """The stages of a Dockerfile, the last of which is the image."""

    stages: tuple[tuple[Instruction, ...], ...]

    @classmethod
    def read(cls, name: str) -> "Dockerfile":
        """Read a file of the repository."""
        text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        instructions = [
            Instruction(kind, " ".join(rest.split()))
            for kind, _, rest in (line.strip().partition(" ") for line in text.splitlines() if line.strip())
        ]
        begins = [i for i, each in enumerate(instructions) if each.kind == "FROM"]
        ends = [*begins[1:], len(instructions)]
        return cls(tuple(tuple(instructions[a:b]) for a, b in zip(begins, ends, strict=True)))

    def texts(self, kind: str, stage: int = -1) -> list[str]:
        """The arguments of all instructions of a kind."""
        return [each.text for each in self.stages[stage] if each.kind == kind]

    def variables(self, kind: str = "ENV") -> dict[str, str]:
        """What ENV or LABEL sets in the image."""
        return dict(part.split("=", 1) for text in self.texts(kind) for part in shlex.split(text))

    def command(self, kind: str) -> list[str]:
        """The words of an ENTRYPOINT, or of the command of a HEALTHCHECK."""
        (text,) = self.texts(kind)
        found: list[str] = json.loads(text[text.index("[") :])
        return found

    def copied(self) -> list[str]:
        """What the first stage copies from the repository."""
        return [name for text in self.texts("COPY", 0) for name in shlex.split(text)[:-1]]

    def install(self, place: Path, scratch: Path) -> Path:
        """Carry out the first stage's RUN, with `place` for the environment; returns the folder of its commands.

        Raises:
            RuntimeError: it fails; the message has the end of what it printed.
        """
        for name in self.copied():
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, scratch / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, scratch)
        (step,) = self.texts("RUN", 0)
        # The image's `python` is the one that the tests run on, without their environment.
        python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
        line = step.replace(PLACE, shlex.quote(str(place))).replace("python -m", f"{shlex.quote(str(python))} -m")
        done = subprocess.run(
            ["sh", "-ec", line], cwd=scratch, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-3000:])
        return place / "bin"

"""The jobs that Snakemake would run, read from its dry run."""

import re
import subprocess
import sys
from dataclasses import dataclass, field

from pipeline.base.errors import UserError


@dataclass
class Job:
    """One job of the dry run: its rule, and the fields that the engine prints of it."""

    rule: str
    fields: dict[str, str] = field(default_factory=dict)

    def resource(self, name: str) -> str:
        """The value of one resource, empty where the rule does not declare it."""
        found = re.search(rf"(?:^|, ){name}=(.*?)(?:, \w+=|$)", self.fields.get("resources", ""))
        return found[1].strip() if found else ""


def parse_dry_run(text: str) -> list[Job]:
    """The jobs of `snakemake --dry-run` output, in its order, without the target rule."""
    jobs: list[Job] = []
    for line in text.splitlines():
        if found := re.match(r"(?:local)?rule (\w+):$", line):
            jobs.append(Job(found[1]))
        elif jobs and (found := re.match(r"    (\w+): (.*)$", line)):
            jobs[-1].fields[found[1]] = found[2]
        elif not line.startswith(" "):
            continue
    return [job for job in jobs if job.fields.get("output")]


def dry_run(words: list[str]) -> list[Job]:
    """The jobs that the engine would run; raises UserError with its last words where it refuses."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nocolor", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"the engine refuses: {(done.stderr or done.stdout).strip()[-500:]}")
    return parse_dry_run(done.stdout + done.stderr)

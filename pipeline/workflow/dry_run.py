"""The jobs that Snakemake would run, read from its dry run.

They are read from its text, since Snakemake 9 has no simpler form that a program could read: a
logger plugin would be a package to install, and its Python interface a second way to start a
workflow. tests/workflow shows when a new version prints something else.
"""

import re
import subprocess
import sys
from dataclasses import dataclass, field

from pipeline.base.errors import UserError


@dataclass
class Job:
    """One job of the dry run: its rule, and the fields that Snakemake prints of it."""

    rule: str
    fields: dict[str, str] = field(default_factory=dict)

    def resource(self, name: str) -> str:
        """The value of one resource; empty if the rule does not declare it."""
        match = re.search(rf"(?:^|, ){name}=(.*?)(?:, \w+=|$)", self.fields.get("resources", ""))
        return match[1].strip() if match else ""


def parse_dry_run(text: str) -> list[Job]:
    """The jobs of `snakemake --dry-run` output, in its order, without the target rule."""
    jobs: list[Job] = []
    for line in text.splitlines():
        if rule := re.match(r"(?:local)?rule (\w+):$", line):
            jobs.append(Job(rule[1]))
        elif jobs and (entry := re.match(r"    (\w+): (.*)$", line)):
            jobs[-1].fields[entry[1]] = entry[2]
    return [job for job in jobs if job.fields.get("output")]


def dry_run(words: list[str]) -> list[Job]:
    """The jobs that Snakemake would run; raises UserError with its last words if it refuses."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nocolor", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"Snakemake refuses: {why_refused(done.stdout, done.stderr)}")
    return parse_dry_run(done.stdout + done.stderr)


def why_refused(stdout: str, stderr: str) -> str:
    """Snakemake's last words, at most 500 characters, without what it prints of every run."""
    own = [line for line in stderr.splitlines() if not line.startswith("Using workflow specific")]
    words = "\n".join(own).strip() or stdout.strip().rpartition("Building DAG of jobs...\n")[2]
    return words[-500:]

"""Commands as the pages print them, for tests that run them."""

import re
from collections.abc import Mapping

from tests.conftest import ROOT


def commands(page: str, heading: str = "") -> list[str]:
    """The commands of the ```sh blocks of docs/<page>.md, or of what follows one of its headings.

    One a line, with continued lines joined, without their comments.
    """
    text = (ROOT / "docs" / f"{page}.md").read_text()
    if heading:
        text = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.partition("  #")[0].strip() for line in lines]
    assert found and all(found), f"docs/{page}.md has no commands below {heading!r}"
    return found


def for_here(command: str, small: Mapping[str, str]) -> str:
    """A printed command with what stands for a cluster's or a user's own put in, and small."""
    for printed, ours in small.items():
        command = command.replace(printed, ours)
    return command

"""Facts of another interpreter: its version, its torch, whether it finds a module to start.

The text of this file runs there, by `python -c TEXT MODULE [torch]`, so it uses nothing but the
standard library of Python 3.8. It prints facts as soon as it knows them, each as one line of JSON
after MARK: an interpreter that dies of its torch has told its version.
"""

import importlib
import importlib.util
import json
import os
import sys

MARK = "pipeline.launching.probe: "


def say(**facts: object) -> None:
    """Print facts, past the buffers of whatever prints while it is imported."""
    os.write(1, f"\n{MARK}{json.dumps(facts)}\n".encode())


def is_found(name: str) -> bool:
    """Whether `python -m NAME` would find something to run.

    True also if a package above it cannot be imported: that error shows by itself when it runs.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        return not f"{name}.".startswith(f"{error.name}.")
    except BaseException:
        return True
    return spec is not None


def main() -> None:
    """Say the facts, and leave at once: nothing that was imported needs an orderly end."""
    say(version=sys.version_info[:3])
    if "torch" in sys.argv[2:]:
        try:
            say(torch=importlib.import_module("torch").__version__)
        except BaseException as error:
            say(torch_error=f"{type(error).__name__}: {error}")
    say(module=is_found(sys.argv[1]))
    os._exit(0)


if __name__ == "__main__":
    main()

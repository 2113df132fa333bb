"""torchrun with this project's messages: what ended a rank, and no traceback of the agent.

python -m pipeline.launching.torchrun --is-step --standalone --nproc-per-node=4 -m pipeline.train …

With --is-step, first of all, messages promise that ranks go on from a checkpoint, and a signal ends
with 75; else it ends as the ranks do. The words behind the module reach it as they are.
"""

import sys

from pipeline.base.imports import importing


def main() -> int:
    """Run the agent; its exit status."""
    with importing():
        from pipeline.launching.agent import quiet_main
    return quiet_main()


if __name__ == "__main__":
    sys.exit(main())

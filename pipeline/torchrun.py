"""torchrun itself, ending quietly: the rank's own sentence and status, no traceback of the agent.

python -m pipeline.torchrun --standalone --nproc-per-node=4 -m pipeline.train …
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from pipeline.errors import EXIT_RESUMABLE


def quiet_main() -> int:
    """Run torchrun; the exit status of the first rank that failed, or 75 after a signal."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status
    except SignalException:
        return EXIT_RESUMABLE
    return 0


if __name__ == "__main__":
    sys.exit(quiet_main())

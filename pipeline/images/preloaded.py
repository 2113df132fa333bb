"""The state that processes which decode images are forked with: modules, and compiled code.

Imported by multiprocessing's fork server (runtime.start_method=forkserver), which does it once for
all workers: each would take two seconds.
"""

import pipeline.images.workers  # noqa: F401  # the modules
from pipeline.images.resample import prepare

prepare()

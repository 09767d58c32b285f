"""Fine-tuning DistilBERT on SST-2: the parts that `train_sst2.py` puts together."""

import os
import sys

__version__ = "1.0.0"


def _forget_users_folder() -> None:
    """Import nothing from the folder that Python puts first: a user's own evaluate.py there is not the library.

    It is the working folder under `python -m sst2.NAME`, where argv[0] is -m as long as the module is looked for, and
    the script's for train_sst2.py.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        folder = os.curdir
    elif os.path.basename(program) == "train_sst2.py":
        folder = os.path.dirname(os.path.realpath(program))
    else:
        return
    if sys.path and os.path.realpath(sys.path[0] or os.curdir) == os.path.realpath(folder):
        del sys.path[0]


_forget_users_folder()

# Threads that wait for others spin 10,000 times and then let go of their core, as OpenMP reads when torch is imported.
# By default they spin 300,000 times, and two of them beside busy programs train at a tenth to a quarter of one thread's
# speed: benchmarks/threads.py.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__path__.append(os.path.join(__path__[0], "cli"))  # python -m sst2.NAME finds the commands there

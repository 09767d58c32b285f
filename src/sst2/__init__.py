"""Fine-tuning DistilBERT on SST-2: the parts that `train_sst2.py` puts together."""

import os

__version__ = "0.1.0"

# Threads that wait for others let go of their core, as OpenMP reads when torch is imported. By default they spin, and
# two of them beside busy programs train at less than a tenth of one thread's speed: benchmarks/threads.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

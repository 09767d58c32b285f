"""Fine-tuning DistilBERT on SST-2: the parts that `train_sst2.py` puts together."""

__version__ = "0.1.0"

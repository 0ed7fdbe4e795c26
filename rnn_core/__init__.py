"""rnn_core: recurrent networks on CPUs. NumPy in, NumPy out."""

__version__ = "0.1.0"

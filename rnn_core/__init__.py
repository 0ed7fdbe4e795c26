"""rnn_core: recurrent networks on CPUs. NumPy in, NumPy out."""

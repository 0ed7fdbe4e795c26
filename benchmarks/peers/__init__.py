"""rnn_core and its peers side by side, on the same weights and inputs: `python -m benchmarks.peers --help`."""

"""How much of a gradient arrives at each step: RNN, GRU and LSTM."""

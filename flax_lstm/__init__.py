"""PyTorch's LSTM, GRU and RNN, option for option, for JAX and Flax Linen."""

from flax_lstm._classifier import (
    CLASSIFIERS as CLASSIFIERS,
    POOLINGS as POOLINGS,
    GRUClassifier as GRUClassifier,
    LSTMClassifier as LSTMClassifier,
    RNNClassifier as RNNClassifier,
    SequenceClassifier as SequenceClassifier,
)
from flax_lstm._gru import StackedGRU as StackedGRU
from flax_lstm._lstm import StackedLSTM as StackedLSTM
from flax_lstm._rnn import StackedRNN as StackedRNN
from flax_lstm._torch_classifier import (
    classifier_params_from_torch as classifier_params_from_torch,
    classifier_params_to_torch as classifier_params_to_torch,
)
from flax_lstm._torch_training import (
    clip_by_torch_global_norm as clip_by_torch_global_norm,
    scale_by_torch_biases as scale_by_torch_biases,
)
from flax_lstm._torch_weights import (
    params_from_torch as params_from_torch,
    params_to_torch as params_to_torch,
)
from flax_lstm.checkpoint import load_classifier as load_classifier

__version__ = "0.1.0"

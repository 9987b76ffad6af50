"""torch.nn.LSTM, GRU or RNN with a dense head, as the study notes write it."""

import functools

import jax
import torch

from experiments.benchmark.sizes import CLASSES, Sizes, examples
from experiments.benchmark.timing import Work

# Of JAX's `jax_default_matmul_precision`: products of float32 without TF32.
_FLOAT32 = ("highest", "float32", "F32_F32_F32")


def device_matching_jax() -> str:
    """`cuda` where JAX computes on a GPU, with products as precise as JAX's there."""
    if jax.default_backend() != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("torch: expected a build with CUDA, as JAX is on a GPU")
    in_tf32 = jax.config.values["jax_default_matmul_precision"] not in _FLOAT32
    torch.backends.cudnn.allow_tf32 = in_tf32
    torch.backends.cuda.matmul.allow_tf32 = in_tf32
    return "cuda"


def flush_subnormals() -> None:
    """Has torch take numbers below 1e-38 as zeros, as XLA does, where it can.

    Gradients vanish into them over long sequences, and some processors are slow with
    them. To be called before torch starts its threads.
    """
    torch.set_flush_denormal(True)


class Classifier(torch.nn.Module):
    """The notes' model; zero states are torch's own default."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
        self.stack = kinds[sizes.cell](
            sizes.inputs, sizes.hidden, sizes.layers, batch_first=True
        )
        self.head = torch.nn.Linear(sizes.hidden, CLASSES)

    def forward(self, x):
        """Logits (B, classes) of x (B, T, I)."""
        output, _ = self.stack(x)
        return self.head(output[:, -1, :])


class TorchLSTM:
    """Eager, or through `torch.compile`."""

    def __init__(
        self,
        threads: int,
        compiled: bool = False,
        steps_per_call: int = 1,
        tuned: bool = False,
    ):
        """`tuned` for the fused Adam (else torch loops in Python) and no subnormals."""
        self._threads = threads
        self._compiled = compiled
        self.steps_per_call = steps_per_call
        self._tuned = tuned

    def training(self, sizes: Sizes) -> Work:
        """`steps_per_call` steps: forward, backward, Adam; a GPU is waited for once."""
        device = device_matching_jax()
        model = self._model(sizes).to(device)
        inputs, labels = (tensor.to(device) for tensor in self._batch(sizes))
        optimizer = torch.optim.Adam(
            model.parameters(), lr=1e-3, fused=self._tuned or None
        )
        criterion = torch.nn.CrossEntropyLoss()

        def step():
            loss = criterion(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def steps():
            for _ in range(self.steps_per_call):
                step()

        return functools.partial(self._run, device, steps)

    def inference(self, sizes: Sizes) -> Work:
        """Logits of one batch."""
        device = device_matching_jax()
        model = self._model(sizes).to(device).eval()
        inputs = self._batch(sizes)[0].to(device)

        @torch.inference_mode()
        def logits():
            model(inputs)

        return functools.partial(self._run, device, logits)

    def eager_inference(self, sizes: Sizes) -> Work:
        """As `inference`, which is eager anyhow."""
        return self.inference(sizes)

    def eager_gradient(self, sizes: Sizes) -> Work:
        """The gradient of the logits' sum with respect to all parameters."""
        device = device_matching_jax()
        model = self._model(sizes).to(device)
        inputs = self._batch(sizes)[0].to(device)

        def gradient():
            model.zero_grad()
            model(inputs).sum().backward()

        return functools.partial(self._run, device, gradient)

    def _run(self, device: str, work: Work) -> None:
        torch.set_num_threads(self._threads)
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    def _model(self, sizes: Sizes):
        if self._tuned:
            flush_subnormals()
        torch.manual_seed(0)
        model = Classifier(sizes)
        return torch.compile(model) if self._compiled else model

    def _batch(self, sizes: Sizes):
        inputs, labels = examples(sizes)
        return torch.from_numpy(inputs), torch.from_numpy(labels).long()

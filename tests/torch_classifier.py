"""The study notes' classifier in torch, with any cell."""

from kinds import KINDS
from oracle import torch


class TorchClassifier(torch.nn.Module):
    """`kind` of a stack, how its outputs are pooled, and a head.

    Its input is (B, T, I); `options` are the stack's.
    """

    def __init__(self, kind, sizes, num_classes=3, pooling="last", **options):
        super().__init__()
        stack = KINDS[kind].build_in_torch(torch, *sizes, batch_first=True, **options)
        self.name = kind.partition("_")[0]
        self.add_module(self.name, stack)
        width = options.get("proj_size") or stack.hidden_size
        width *= 2 if options.get("bidirectional") else 1
        self.pooling = pooling
        if pooling == "attention":
            self.attention = torch.nn.Linear(width, width)
            self.query = torch.nn.Linear(width, 1, bias=False)
        self.head = torch.nn.Linear(width, num_classes)

    def forward(self, x):
        out, state = getattr(self, self.name)(x)
        if self.pooling == "attention":
            weights = self.query(torch.tanh(self.attention(out))).softmax(dim=1)
            return self.head((weights * out).sum(dim=1))
        if self.pooling == "mean":
            return self.head(out.mean(dim=1))
        if self.pooling == "final":
            h_n = state[0] if self.name == "lstm" else state
            return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1))
        return self.head(out[:, -1, :])

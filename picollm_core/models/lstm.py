"""LSTM language model."""

import torch
from torch import Tensor, nn

from picollm_core.config import LSTMConfig
from picollm_core.models.base import LanguageModel
from picollm_core.models.layers import Linear, head_std

LSTMState = tuple[Tensor, Tensor]  # h and c, each (n_layer, B, C)


class LSTM(LanguageModel):
    """Embedding, n_layer stacked LSTM layers of the same width, head (Hochreiter & Schmidhuber 1997)."""

    config: LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        between = config.dropout if config.n_layer > 1 else 0.0
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.rnn = nn.LSTM(config.n_embd, config.n_embd, config.n_layer, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=head_std(config.n_embd))
        if config.tied:  # the head's scale rules: the embedding's N(0, 1) would put the first loss far above ln V
            self.embedding.weight = self.head.weight
        self._open_forget_gates()

    @torch.no_grad()
    def _open_forget_gates(self) -> None:
        """Forget-gate bias 1 (Jozefowicz et al. 2015): the cell remembers before it has learned what to forget."""
        for name, bias in self.rnn.named_parameters():
            if name.startswith("bias_ih"):
                bias.zero_()
                bias[self.config.n_embd : 2 * self.config.n_embd] = 1.0
            elif name.startswith("bias_hh"):
                bias.zero_()

    def init_state(self, batch_size: int) -> LSTMState:
        shape = (self.config.n_layer, batch_size, self.config.n_embd)
        zeros = torch.zeros(shape, dtype=self.head.weight.dtype, device=self.head.weight.device)
        return zeros, zeros

    def hidden(self, idx: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        self.check_ids(idx)
        x = self.dropout(self.embedding(idx))  # (B, T, C)
        h, state = self.rnn(x, state)
        return self.dropout(h), state

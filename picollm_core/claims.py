"""What earlier work on this assignment concluded: every conclusion that can be put to a test, in our own words.

Sources: "slides" are a team's ten-minute talk, "page" is another team's project page, "log" the working notes of a
third with their plan, and "assignment" the course's own text. What a fair test says of each stands in verdicts.json.
"""

from typing import NamedTuple

SOURCES = {
    "slides": "a team's talk: three families in three sizes on a million stories",
    "page": "a project page: 22 configurations and their cross-run analysis",
    "log": "a team's notes: custom text, overfitting, hyperparameters on a CPU",
    "assignment": "the course's text and the papers that it cites",
}


class Claim(NamedTuple):
    """One conclusion: what was said, by whom, and where in the source it stands."""

    id: str
    source: str
    claim: str
    where: str


_ROWS = (
    ("base-flattens-before-0.3-epoch", "slides", "models of 110M stop improving on held-out text before 0.3 of an "
     "epoch, since they have more capacity than the data needs", "why scale down"),
    ("small-models-show-differences", "slides", "in smaller models a change of hyperparameters makes a clearer "
     "difference", "why scale down"),
    ("equal-parameters-3.2M", "slides", "one-hot and scaled k-grams of the pico size have 3.2M parameters alike",
     "table of k-gram sizes"),
    ("lstm-larger-quicker", "slides", "larger LSTMs converge quicker", "LSTM, size ablation"),
    ("lstm-larger-lower", "slides", "larger LSTMs end at a lower test perplexity", "LSTM, size ablation"),
    ("kgram-larger-quicker", "slides", "larger k-grams converge quicker and end lower", "k-gram, size ablation"),
    ("onehot-lower", "slides", "one-hot input gives a lower perplexity than scaled embeddings",
     "k-gram, size ablation"),
    ("onehot-gap-shrinks-with-size", "slides", "the advantage of one-hot input shrinks as the model grows",
     "k-gram, size ablation"),
    ("k-lowers-loss", "slides", "the loss falls from k = 1 over 3 to 5", "k-gram, k and embedding"),
    ("scaled-curves-smoother", "slides", "loss curves of scaled embeddings are smoother, those of one-hot input bend",
     "k-gram, k and embedding"),
    ("k5-onehot-best", "slides", "k = 5 with one-hot input has the lowest perplexity of the six pico k-grams",
     "k-gram, k and embedding"),
    ("kgram-diversity-varies-little", "slides", "k and embedding hardly change how diverse the text is",
     "k-gram, k and embedding"),
    ("onehot-gap-grows-with-k", "slides", "the advantage of one-hot input grows with k", "k-gram, k and embedding"),
    ("transformer-larger-quicker", "slides", "larger Transformers converge quicker and end lower",
     "Transformer, size ablation"),
    ("minimal-variance-norm-position", "slides", "norm placement and positions make hardly a difference to the loss",
     "Transformer, positions and norm"),
    ("absolute-most-diverse-nope-least", "slides", "text is most diverse with absolute positions and least with none",
     "Transformer, positions and norm"),
    ("prenorm-absolute-best", "slides", "pre-norm with absolute positions has the lowest perplexity and the most "
     "diverse text", "Transformer, positions and norm"),
    ("lstm-best-at-pico", "slides", "at pico size the LSTM has the lowest perplexity, being more parameter-efficient",
     "comparison of pico models"),
    ("kgram-highest-perplexity", "slides", "at pico size the k-gram has the highest perplexity",
     "comparison of pico models"),
    ("kgram-richest-diversity", "slides", "at pico size the k-gram's text is the most diverse",
     "comparison of pico models"),
    ("transformers-need-more-data", "slides", "Transformers need more data than LSTMs", "comparison of pico models"),
    ("greedy-repeats", "slides", "greedy text repeats itself and loses its thread", "decoding"),
    ("p-raises-diversity", "slides", "a larger p gives more varied and less repetitive text", "decoding"),
    ("p1-incoherent", "slides", "without truncation text is the most diverse and the least coherent", "decoding"),
    ("transformer-greedy-collapses", "slides", "greedy text of the Transformer collapses into one repeated phrase",
     "decoding"),
    ("kgram-incoherent-at-any-p", "slides", "text of the k-gram is incoherent at every p", "decoding"),
    ("no-row-sampling-loses-nothing", "slides", "visiting every row, in place of drawing rows, keeps training data "
     "from being lost", "conclusion, data loader"),
    ("loss-perplexity-accuracy-agree", "page", "one model has a validation loss of 1.665, a perplexity of 6.389 and a "
     "token accuracy of 73.21%", "best results"),
    ("kv-cache-transformer-better", "page", "the KV-cached Transformer is the better model", "model comparisons"),
    ("transformer-lowest-perplexity-highest-accuracy", "page", "the Transformer has the lowest perplexity and the "
     "highest accuracy, LSTM and k-gram trail", "model comparisons"),
    ("larger-embeddings-dominate", "page", "larger embeddings are better throughout for k-gram and Transformer",
     "heat maps"),
    ("higher-k-helps-lstm", "page", "a higher k lowers the LSTM's loss", "heat maps"),
    ("gelu-beats-relu", "page", "GELU is better than ReLU in every kind of model", "loss by activation"),
    ("accuracy-loss-correlation", "page", "of all numbers kept for a run, its token accuracy goes most closely with "
     "its validation loss: a correlation of -0.80", "correlation matrix"),
    ("design-correlations", "page", "embedding and block size go up with inner layers and batch size",
     "correlation matrix"),
    ("lstm-residual-bias", "page", "a regression of the loss is most biased for LSTMs and tightest for Transformers",
     "regression residuals"),
    ("loss-falls-with-corpus-size", "log", "with 3, 63, 123 and 185 custom lines the LSTM's final loss falls steadily",
     "custom data, loss sweep"),
    ("gptoss-gentler", "log", "with more custom lines gpt-oss's loss falls more gently than the LSTM's",
     "custom data, loss sweep"),
    ("more-steps-lower-both", "log", "1, 3 and 6 updates an epoch lower training and held-out loss alike",
     "training budget sweep"),
    ("echo-of-new-words", "log", "with three quarters of custom text the samples take up its words after one update an "
     "epoch", "custom data, result snapshot"),
    ("overfitting-43-sequences", "log", "on 43 sequences training and held-out loss part within 30 epochs",
     "overfitting"),
    ("three-configs-ranking", "log", "three configurations that differ in width, block size and learning rate rank "
     "these choices", "hyperparameter study"),
    ("embedding-mlp-best-tradeoff", "log", "of one-hot, embedding and convolutional k-grams the embedding one has the "
     "lowest loss and the highest speed", "empirical results"),
    ("gptoss-starts-lower", "log", "gpt-oss starts at a loss of 10.9 where minGPT starts at 234 and GPT-2 at 360",
     "Transformer variants"),
    ("one-step-model-shows-top-p", "log", "samples at p = 0.8, 0.95 and 1 of a model after one update show what top-p "
     "does", "nucleus sampling observations"),
    ("overfitted-text-lacks-diversity", "assignment", "the text of an overfitted model lacks diversity",
     "optional task 2"),
    ("positions-not-needed", "assignment", "under a causal mask a Transformer does not need positional embeddings",
     "optional task 4"),
    ("linear-attention-worse", "assignment", "linear attention performs worse than softmax attention",
     "optional task 6"),
    ("gating-closes-the-gap", "assignment", "gated linear attention and its kin reduce that difference",
     "optional task 6"),
)  # fmt: skip

CLAIMS: dict[str, Claim] = {row[0]: Claim(*row) for row in _ROWS}
"""Every claim by its id."""

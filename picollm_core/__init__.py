"""picollm_core: small language models to train, compare, sample from and look into."""

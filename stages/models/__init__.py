"""Models that stages use: loaders, tokenizers and the protocols they keep."""

"""Embeddings that earlier stages stored: read in blocks, clustered, searched for near pairs."""

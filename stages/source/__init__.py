"""Sources: each file makes rows out of one kind of input."""

"""The domain: one stage per file, the file name is the name a recipe uses."""

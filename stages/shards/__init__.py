"""Parts of the shard writer: what goes out, how it is cut, the files, and how they get their final names."""

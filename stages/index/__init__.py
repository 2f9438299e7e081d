"""Index files: what is known of a set of images and texts (an evaluation set, a finished run) in compact form, for other runs to be tested against."""

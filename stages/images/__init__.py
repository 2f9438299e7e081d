"""Functions on image bytes and pixels: fetching, headers, decoding, normalising, hashing. Nothing here knows of stages."""

"""Plain data that every part of pairmill agrees on; imports nothing but pyarrow and the standard library."""

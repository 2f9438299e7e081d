"""Duplicates: pairs of near hashes, components, and the one row of each that stays."""

"""Towers behind one contract."""

"""The rendered world: scenes whose truth is known, served as a small hostile web on loopback."""

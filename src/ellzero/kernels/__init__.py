"""Compiled loops: arrays in, arrays out, no torch."""

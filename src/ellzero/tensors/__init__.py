"""Arithmetic on named tensors, supports, exact selection."""

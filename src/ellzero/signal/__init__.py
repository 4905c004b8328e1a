"""Sparse and smooth signals: exact on chains and trees, with proven gaps on other graphs."""

"""The nouns, the loop and the results."""

"""`python -m ellzero.cli`."""

from ellzero.cli import main

main()

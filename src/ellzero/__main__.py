"""Run the command line: python -m ellzero."""

from ellzero.cli import main

if __name__ == "__main__":
    main()

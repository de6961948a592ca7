"""`python -m tagmask` is the command line."""

from tagmask.cli import main

main()

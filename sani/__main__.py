"""`python -m sani` is the command `sani`."""

from sani.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

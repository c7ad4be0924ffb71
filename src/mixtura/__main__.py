"""`python -m mixtura`, the same as the command `mixtura`."""

from mixtura.cli import main

if __name__ == "__main__":
    main()

"""`python -m aniso`, for torchrun and the like."""

from aniso.cli import main

if __name__ == "__main__":
    main()

"""`python -m rhovae_kernels.cli`."""

from rhovae_kernels.cli import main

if __name__ == "__main__":
    main()

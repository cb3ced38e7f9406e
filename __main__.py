"""`python -m neuronaut`, the same as the command `neuronaut`."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="neuronaut")

"""``python -m deltamem_cli``."""

from deltamem_cli.app import main

if __name__ == "__main__":  # processes that draw for a training run import this module as well
    main()

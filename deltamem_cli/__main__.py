"""``python -m deltamem_cli``."""

from deltamem_cli.app import main

main()

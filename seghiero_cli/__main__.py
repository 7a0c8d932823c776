"""Run the `seghiero` command as `python -m seghiero_cli`, for launchers such as torchrun."""

from seghiero_cli.main import main

main()

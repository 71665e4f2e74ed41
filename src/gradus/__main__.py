"""``python -m gradus`` is the command ``gradus``."""

from gradus.flows.cli.app import main

if __name__ == "__main__":
    main()

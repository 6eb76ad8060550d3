"""``python -m aigtool``."""

from aigtool.cli.main import main

if __name__ == "__main__":
    main()

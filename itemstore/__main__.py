"""``python -m itemstore`` is the same as ``itemstore``."""

from itemstore.cli import main

if __name__ == "__main__":
    main()

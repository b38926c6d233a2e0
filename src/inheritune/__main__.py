"""``python -m inheritune`` is the command line."""

from inheritune.cli import main

if __name__ == "__main__":
    main()

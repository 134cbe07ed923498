"""``python -m upfeat``: the command ``upfeat``, where its script is not on the path."""

from upfeat.cli import main

if __name__ == "__main__":
    main()

"""Lets `python -m finetune` do what the `finetune` command does."""

from finetune.cli import main

if __name__ == "__main__":
    main()

"""`python -m sam_hf.annotate`."""

from transformers.utils import logging

from .command import main

if __name__ == "__main__":
    logging.disable_progress_bar()
    main()

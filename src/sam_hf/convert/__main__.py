"""`python -m sam_hf.convert`."""

from transformers.utils import logging

from .command import main

if __name__ == "__main__":
    logging.set_verbosity_error()  # what does not fit is listed by the command
    logging.disable_progress_bar()
    main()

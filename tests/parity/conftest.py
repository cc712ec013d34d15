"""For the tests that compare with transformers: all that it opens is local."""

import os
from contextlib import suppress

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import, which reads it

with suppress(ImportError):
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

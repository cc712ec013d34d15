"""What several test files share. Tests must not train the model: it is shared, too."""

import os
import sys

import pytest
from hypothesis import settings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # `python -m pytest` works without installing anything

import microgpt  # noqa: E402

settings.register_profile("untimed", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))


@pytest.fixture(scope="session")
def tokenizer():
    return microgpt.CharTokenizer(["ada", "bob", "cleo"])


@pytest.fixture(scope="session")
def model(tokenizer):
    config = microgpt.Config(tokenizer.vocab_size, 8, n_layer=2, n_head=2, n_embd=8)
    return microgpt.GPT(config)

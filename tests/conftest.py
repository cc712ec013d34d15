"""What pytest needs before any test, and the one model that many tests share."""

import os

import pytest
from hypothesis import settings

import microgpt

settings.register_profile("untimed", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))


@pytest.fixture(scope="session")
def tokenizer():
    return microgpt.CharTokenizer(["ada", "bob", "cleo"])


@pytest.fixture(scope="session")
def model(tokenizer):
    """Tests must not train it."""
    config = microgpt.Config(tokenizer.vocab_size, 8, n_layer=2, n_head=2, n_embd=8)
    return microgpt.GPT(config)

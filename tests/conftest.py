from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items):
    # On a machine that must have a GPU, a missing one fails the tests instead of skipping them.
    if torch.cuda.is_available() or os.environ.get("ANISO_REQUIRE_GPU"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm():
    from aniso.models import load_model, packaged_model

    return load_model(str(packaged_model()))


@pytest.fixture(scope="session")
def demo_texts():
    from pathlib import Path

    import aniso
    from aniso.models import read_texts

    return read_texts(Path(aniso.__file__).parent / "cli" / "demo_text.txt")

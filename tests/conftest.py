"""What every test shares: a quiet machine, no network, no tracking, and one seeded generator."""

import os

# Set before torch, wandb or a Hugging Face library is imported, in this process and in those that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)  # the tensors are small, and a second thread would only wait


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed, new for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory):  # its type would import lightning for every test
    """A tiny text and an autoencoder trained on it, made once for all tests that train."""
    from tests.runs import make_workshop

    return make_workshop(tmp_path_factory.mktemp("workshop"))

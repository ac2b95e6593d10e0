"""Bad input is one line that names the value and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep.data
from fewstep.data.sources import CorpusSettings
from fewstep.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("vocab_size", 256, "at least 257"),
        ("validation_fraction", 0.0, "between 0 and 1"),
        ("validation_fraction", 1.0, "between 0 and 1"),
        ("validation_fraction", float("nan"), "between 0 and 1"),
        ("block_size", 0, "at least 1 token"),
        ("max_documents", 0, "above 0"),
        ("source", " ", "'sotu', 'everyday', a file"),
        ("blocks", "padded", "packed or documents"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value, expected):
    with pytest.raises(UserError, match=field) as caught:
        CorpusSettings(**{field: value})
    assert expected in str(caught.value)


def test_a_hub_out_of_reach_is_one_line_and_soon(tmp_path):
    program = (
        "from fewstep.data.corpus import prepare_corpus\nfrom fewstep.data.sources import CorpusSettings\n"
        "from fewstep.data.tokenizer import load_tokenizer\nfrom fewstep.errors import UserError\n"
        f"s = dict(source='nobody/nothing', cache_dir={str(tmp_path)!r})\n"
        "for call in (lambda: prepare_corpus(CorpusSettings(**s)), lambda: load_tokenizer('nobody/nothing'),\n"
        "             lambda: prepare_corpus(CorpusSettings(**s, streaming=True))):\n"
        "    try: call()\n"
        "    except UserError as error: print(error)\n"
    )
    # A closed local port stands for a network that is not there, whatever this machine's network is.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(fewstep.data.__file__).parents[2]),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=40)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("'nobody/nothing' is no local path" in line and "offline or misspelt" in line for line in lines)
    assert "Retrying" not in done.stderr
    assert "Traceback" not in done.stderr

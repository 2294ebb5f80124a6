"""Without any network and with empty caches: both tokenizers, training, evaluation and sampling work."""

import os
import shutil
import subprocess
import sys

SCRIPT = """
import socket

def refuse(self, address):
    raise OSError("no network")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
import picollm_core as pico

for tokenizer in ("stories-4k", "gpt2"):
    run = pico.train("kgram-pico", corpus="auto", n_stories=200, tokenizer=tokenizer, n_embd=8, max_steps=3,
                     block_size=32, batch_size=4, progress=False)
    text = pico.generate(run.load_model(), run.load_tokenizer(), "Once upon a time", max_new_tokens=5)
    print(run.context["corpora"][0], run.summary["n_stories"], text.startswith("Once upon a time"))
"""


def isolated() -> list[str]:
    """The command prefix that takes the network away in the kernel, where this machine allows it."""
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0
    return [unshare, "-rn"] if allowed else []


def test_everything_that_ships_works_without_network(tmp_path):
    hidden = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "PICOLLM_TINYSTORIES", "HF_HUB_OFFLINE", "HF_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [*isolated(), sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("storyworld") and line.endswith("True") for line in lines)

"""Cells of a notebook: an answer as it is written, then how long it took.

As a script it takes the address of the app::

    python notebook.py http://127.0.0.1:8000
"""

import sys

from flask_llmstream.client import StreamClient

APP = sys.argv[1]


# %% Watch the answer grow. Interrupting the cell ends the model's work, too.
with StreamClient(APP + "/chat", json={"messages": [{"role": "user", "content": "Hello"}]}) as answer:
    for piece in answer.text():
        print(piece, end="", flush=True)

# %% What it took.
print(f"\n{answer.progress.tokens} tokens, {answer.progress.rate:.0f} per second, {answer.finish_reason}")

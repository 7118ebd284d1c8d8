r"""A report every night, from cron: one request, the text in a file, an exit code that cron understands.

It reads the stream of ``examples/chat``, or of any route made with ``@stream``. In a crontab::

    0 4 * * *  python nightly.py http://127.0.0.1:8000/chat /var/reports/today.md

What is half finished is never at the place of the report: it moves there when it is complete.
"""

import os
import sys

from flask_llmstream import LLMStreamError
from flask_llmstream.client import StreamClient

QUESTION = {"messages": [{"role": "user", "content": "What happened yesterday?"}]}


def main(url, target):
    with StreamClient(url, json=QUESTION, retries=5) as answer, open(target + ".part", "w") as file:
        for piece in answer.text():
            file.write(piece)
    os.replace(target + ".part", target)
    print(f"{answer.progress.tokens} tokens in {answer.progress.seconds:.1f} s, {answer.finish_reason}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LLMStreamError as error:
        sys.exit(f"no report: {error}")

"""Written years ago against another server, with nothing but requests."""

import json
import sys

import requests

with requests.post(sys.argv[1], json={"prompt": "Hello"}, stream=True) as response:
    response.raise_for_status()
    name = None
    for line in response.iter_lines():
        if line.startswith(b"event: "):
            name = line[7:].decode()
        elif line.startswith(b"data: ") and name is None:
            sys.stdout.write(json.loads(line[6:].decode("utf-8"))["text"])
            sys.stdout.flush()
        elif not line:
            name = None

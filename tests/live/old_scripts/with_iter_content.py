"""Written years ago against another server, cutting the events out of the bytes by hand."""

import json
import sys

import requests

response = requests.get(sys.argv[1], stream=True)
buffer = b""
for chunk in response.iter_content(chunk_size=None):
    buffer += chunk
    while b"\n\n" in buffer:
        block, buffer = buffer.split(b"\n\n", 1)
        fields = {}
        for line in block.split(b"\n"):
            field, _, value = line.partition(b": ")
            fields[field] = value
        if b"event" not in fields and b"data" in fields:
            sys.stdout.write(json.loads(fields[b"data"].decode("utf-8"))["text"])
            sys.stdout.flush()

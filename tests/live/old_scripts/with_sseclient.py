"""Written years ago against another server, with sseclient-py."""

import json
import sys

import requests
import sseclient

response = requests.get(sys.argv[1], stream=True, headers={"Accept": "text/event-stream"})
client = sseclient.SSEClient(response)
for event in client.events():
    if event.event == "done":
        break
    if event.event == "message":
        sys.stdout.write(json.loads(event.data)["text"])
        sys.stdout.flush()
client.close()

"""The pure core: data in, data out; no framework, socket, thread, clock, random or environment."""

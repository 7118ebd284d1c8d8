"""Finds what holds streams back: on the way to a client, and in an app and its deployment."""

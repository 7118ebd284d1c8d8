"""The apps that are compared, and the work that they do."""

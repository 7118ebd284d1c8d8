"""What providers send while a model writes, read into deltas: one pure decoder per format."""

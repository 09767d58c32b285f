"""The folder of a run: paths, lock, and where its first checkpoint came from."""

"""What is saved of a run, how it lies on disk, and what a resumed run is checked against."""

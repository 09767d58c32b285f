"""What `--dry_run` alone needs: a run is measured in a folder that is removed, and what all of it takes is printed."""

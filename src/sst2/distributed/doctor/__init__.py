"""What `sst2 doctor` alone needs: checks of the machines of a job, and of the disk that they write to."""

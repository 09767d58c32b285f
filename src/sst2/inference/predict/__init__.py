"""What `sst2 predict` alone needs: sentences in, answers out."""

"""What knows nothing of training: errors and exit codes, files that are whole or absent, logs, waits, timing."""

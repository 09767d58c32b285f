"""Processes that work as one: joining, precision and threads, stop requests, the watchdog, strategies."""

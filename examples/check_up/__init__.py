"""A clinic: when a check-up is finished, its mail, its report and its payment are queued by the same transaction."""

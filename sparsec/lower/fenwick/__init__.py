"""Matrix states on a Fenwick schedule, chunk by chunk."""

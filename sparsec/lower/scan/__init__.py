"""Matrix states: scans over tokens, by token recurrence or chunk by chunk."""

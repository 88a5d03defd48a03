"""Rows and maps: functions of tensors row by row, numbers that rows come to, and running sums over tokens."""

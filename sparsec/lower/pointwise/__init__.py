"""Maps: functions of tensors element by element and row by row, and their adjoints."""

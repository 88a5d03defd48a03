"""Banks with a route chunk by chunk: what tokens bring is sorted by part, scanned as one sequence, and put back."""

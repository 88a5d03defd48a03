"""One kernel at a time: drawn inputs, what fp64 makes of them, and the scratch that its programs need."""

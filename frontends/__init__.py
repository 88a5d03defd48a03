"""Ways to declare a variant; all of them write the same graph."""

"""Hand-written tile programs that every back end must run; between them, by name in ``cases``, they use every op."""

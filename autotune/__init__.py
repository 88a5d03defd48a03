"""The tuner: search space, admission, measurement and stored trials."""

"""The tile language: what one kernel does, its interpreter and its resource model."""

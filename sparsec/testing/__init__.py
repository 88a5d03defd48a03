"""Contract tests and strategies that a back end or a new variant can inherit."""

"""Grids of notebooks: YAML to checked runs, execution, records, leaderboard. Never imports torch."""

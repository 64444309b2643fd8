"""What outlives a process: Postgres, the truth; Redis, a cache and a bell; objects."""

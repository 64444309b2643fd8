"""One command per claim, each against its peer in the same run."""

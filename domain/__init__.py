"""The words of Assay: pure data and rules, no I/O; imports nothing of ours."""

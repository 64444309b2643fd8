"""The demonstration: an exam and a class's answers, written for this project."""

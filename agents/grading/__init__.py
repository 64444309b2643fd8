"""The grading agent: a supervisor, specialists by question type, checked evidence, points added in code."""

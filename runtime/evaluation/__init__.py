"""Measuring how far a model's marks agree with a teacher's, on answers that the teacher has marked."""

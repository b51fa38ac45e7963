"""Operations: recipes, the run registry, the Ray cluster of a job, submission, and the doctor."""

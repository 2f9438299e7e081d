"""The machine: cuts input into parts, runs stages over them, commits, resumes. Knows no stage and no image library."""
